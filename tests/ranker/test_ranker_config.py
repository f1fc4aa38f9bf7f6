"""Settings that go with no training are refused where they are made, by name and with what would do."""

from dataclasses import replace

import pytest

from ranker.config import KINDS, PRESETS, RankerConfig, of_kind
from ranker.errors import RankerError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"history": "bag"}, "history is 'bag': set it to one of 'order', 'set'"),
        ({"fusion": "max"}, "fusion is 'max': set it to one of 'gate', 'sum', 'concat', 'late'"),
        ({"prior": "als"}, "prior is 'als': set it to one of '', 'ease', 'svd'"),
        ({"precision": "float16"}, "precision is 'float16': set it to one of 'auto', 'float32', 'bfloat16'"),
        ({"history": "set"}, "no loss is left with history='set', batch_size=128 and batch_users=0: set batch_users"),
        ({"batch_size": 0}, "no loss is left with history='order', batch_size=0 and batch_users=0: set batch_users"),
        ({"fusion": "late"}, "fusion='late' reads sets, and history is 'order': set history to 'set'"),
        ({"mean_keeps": 1.0}, "mean_keeps is 1.0"),
        ({"network": False}, "prior is '': set it to 'ease' or 'svd'"),
        ({"heads": 3}, "dim 32 is not a multiple of heads 3"),
        ({"prototypes": 0}, "prototypes is 0: set it to 1 or more"),
        ({"look_epochs": 0}, "look_epochs is 0: set it to 1 or more"),
    ],
)
def test_settings_that_go_with_no_training_are_refused(settings, message):
    """Before any data is read."""
    with pytest.raises(RankerError, match=message):
        RankerConfig(**settings)


def test_every_preset_of_every_kind_can_be_kept_and_read():
    """As the manifest stores it."""
    for size in PRESETS:
        for kind in KINDS:
            config = of_kind(kind, size)
            assert RankerConfig.from_dict(config.to_dict()) == config
    assert replace(PRESETS["tiny"], mean_keeps=0.9).mean_keeps == 0.9
