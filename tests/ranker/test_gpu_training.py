"""Rankers are trained on a GPU, in bfloat16 where it has that, and score there as they do on the CPU."""

from dataclasses import replace

import pytest
import torch

from ranker.loop import fit
from ranker.mixing import mix_prior
from ranker.run import start
from ranker.scoring import Scoring
from tests.ranker.sets import SMALL, ordered, unordered

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA GPU here: the GPU's code paths were not run"
)
SETS = replace(SMALL, history="set", layers=0, set_dim=16, max_epochs=20)
LABELS = replace(SMALL, batch_size=64, attention=True)
CASES = pytest.mark.parametrize(("make", "config"), [(ordered, SMALL), (ordered, LABELS), (unordered, SETS)])


@CASES
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
def test_what_is_trained_on_the_gpu_is_as_good(rng, make, config):
    """In bfloat16, which `auto` takes there, and with a prior; parameters stay float32, on the GPU."""
    ts, split = make(rng)
    found = {}
    for device in ("cpu", "cuda"):
        with torch.device(device):
            fitted = fit(ts, split, replace(config, prior="ease"), 0)
            mix_prior(fitted)
            found[device] = Scoring.of(fitted.run, split.test).ndcg()
            assert {(p.dtype, p.device.type) for p in fitted.model.parameters()} == {(torch.float32, device)}
    assert found["cuda"] > 0.3
    assert abs(found["cuda"] - found["cpu"]) < 0.1


@CASES
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
def test_the_same_weights_score_alike(rng, make, config):
    """To 1e-3 of the scores' spread, in float32."""
    ts, split = make(rng)
    on_cpu = fit(ts, split, replace(config, precision="float32", max_epochs=2), 0)
    expected = [score_BR for _, score_BR in Scoring.of(on_cpu.run, split.test).scores()]
    with torch.device("cuda"):
        on_gpu = start(ts, split, on_cpu.model.to("cuda"), on_cpu.vocabulary, 0)
        scores = [score_BR.cpu() for _, score_BR in Scoring.of(on_gpu, split.test).scores()]
    for one, other in zip(scores, expected, strict=True):
        assert (one - other).abs().max() < 1e-3 * other.std()
