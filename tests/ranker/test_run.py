"""What a step of training reads of items."""

from dataclasses import replace

import torch

from tests.ranker.sets import SMALL, ordered
from tests.ranker.test_steps import run_of


def test_an_item_of_which_only_the_id_is_known_keeps_it(rng):
    """Ids are dropped for content to stand in; tokens of items that have none would be nothing."""
    ts, split = ordered(rng, users=20)
    run = run_of(ts, split, replace(SMALL, id_dropout=0.9, modality_dropout=0.0))
    bare = torch.arange(60) % 2 == 0
    run.inputs.present_NM[bare], run.inputs.tag_NT[bare] = False, 0
    run.model.train()
    kept = run._kept(run.inputs, without_ids=False).index_N > 0
    assert kept[bare].all()
    assert not kept[~bare].all()
    assert not (run._kept(run.inputs, without_ids=True).index_N > 0).any()


def test_what_no_item_of_training_had_is_no_part_of_tokens(rng):
    """Here nothing has a price or a category; a price that comes later changes nothing, since nothing was learned of it."""
    ts, split = ordered(rng, users=20)
    run = run_of(ts, split)
    assert run.model.encoder.slot_names == ("text", "id", "tags")
    priced = replace(run.inputs, price_N=torch.full((60,), 3.0))
    tokens = [run.model.eval().items(inputs).token_ND for inputs in (run.inputs, priced)]
    torch.testing.assert_close(*tokens)
    ts.items.price[:] = 2.0
    assert run_of(ts, split).model.encoder.slot_names == ("text", "id", "price", "tags")
