import numpy as np
import pytest

from encoders.errors import EncoderError
from encoders.space import EmbeddingSpace
from encoders.vectors import unit_vectors


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_that_is_none_is_refused(bad):
    """Zero, NaN and infinite vectors never leave an encoder; the error names the input."""
    space = EmbeddingSpace.from_recipe("text", "x", 3, {})
    with pytest.raises(EncoderError, match="for input 1"):
        unit_vectors(np.array([[1, 0, 0], [bad, 0, 0]]), space)


def test_tiny_and_huge_vectors_are_scaled():
    """Norms far from one, within float32's range, come out as one."""
    space = EmbeddingSpace.from_recipe("text", "x", 2, {})
    np.testing.assert_allclose(
        unit_vectors(np.array([[3e-30, 4e-30], [3e30, 4e30]]), space), [[0.6, 0.8]] * 2, rtol=1e-6
    )
