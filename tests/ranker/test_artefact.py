"""The exported file scores as the model does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from feature_store.history import Events
from ranker.artefact import arguments, export
from ranker.errors import EvaluationError
from ranker.prior import Prior
from ranker.scorer import Context, Ranker, UserState
from tests.ranker.factories import TINY, example_spaces, random_items, tiny_checkpoint

NOW = Context(1_700_000_000_000_000)
IDS = [f"item{i}" for i in range(20)] + ["stranger"]


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, history="set", layers=0, set_dim=8, batch_users=8),
        replace(TINY, history="set", layers=0, set_dim=8, batch_users=8, fusion="late"),
        replace(TINY, attention=False),
        replace(TINY, batch_size=0, batch_users=8),
    ],
)
@pytest.mark.filterwarnings("ignore::Warning")
def test_the_file_scores_as_the_model_does(tmp_path, rng, config):
    """For histories and candidates of other numbers than it was exported with, the prior included."""
    ranker = Ranker.load(tiny_checkpoint(tmp_path, config=config))
    ranker.model.prior = Prior.of(rng.normal(size=(20, 20)).astype(np.float32), np.arange(1, 21), 20, 8)
    ranker.model.prior.scale.fill_(1.5)
    ranker.model.prior.knee.fill_(0.5)
    tokens = ranker.item_tokens(random_items(example_spaces(), IDS, seed=5))
    module = torch.export.load(export(ranker, tmp_path / "ranker.pt2")).module()
    for events, candidates, device in ((2, 2, ""), (6, 21, "phone")):
        now = replace(NOW, device=device)
        met = IDS[:events]
        history = Events([f"e{i}" for i in range(events)], met, ["click"] * events, np.full(events, np.nan), NOW.now_us - np.arange(events, 0, -1) * 10**9)  # fmt: skip
        state = UserState(history, tokens.take(range(events)))
        rows = rng.permutation(len(IDS))[:candidates]
        with torch.no_grad():
            found = module(*arguments(ranker, state, tokens.items.take(torch.from_numpy(rows)), now)).numpy()
        assert np.allclose(found, ranker.score(state, tokens, rows, now).scores, atol=1e-5)


def test_words_and_queries_are_refused(tmp_path):
    """The file does not read them, so it cannot score as the model does."""
    ranker = Ranker.load(tiny_checkpoint(tmp_path))
    tokens = ranker.item_tokens(random_items(example_spaces(), IDS, seed=5))
    nobody = UserState(Events(), ranker.no_items(), profile=np.ones(6, np.float32))
    with pytest.raises(EvaluationError, match="reads no profile and no query: leave them out"):
        arguments(ranker, nobody, tokens.items, NOW)
