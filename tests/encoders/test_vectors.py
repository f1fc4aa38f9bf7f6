import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.errors import EncoderError
from encoders.space import EmbeddingSpace
from encoders.vectors import equal_length_batches, token_batches, unit_vectors

LENGTHS = st.lists(st.integers(1, 300), max_size=60)
BUDGET = st.integers(1, 2000)


@given(LENGTHS, BUDGET)
def test_token_batches_cover_all_once_within_the_budget(lengths, budget):
    """Every text is in exactly one batch, and a batch of more than one text stays within the padded budget."""
    batches = list(token_batches(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget for batch in batches)


@given(LENGTHS, BUDGET)
def test_equal_length_batches_never_mix_lengths(lengths, budget):
    """Every clip is in exactly one batch, all of one length, within the budget."""
    batches = list(equal_length_batches(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len({lengths[index] for index in batch}) == 1
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= budget


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
