"""What can go wrong with a ranker, as one small tree.

RankerError
├── TrainingSetError   a training set folder cannot be used
├── CheckpointError    a checkpoint is missing, damaged, or would be overwritten
└── NoStableModelError no model was promoted yet
"""


class RankerError(Exception):
    """Base of all errors of this room; the message says what to do."""


class TrainingSetError(RankerError):
    """The training set is missing, damaged, or has too little in it."""


class CheckpointError(RankerError):
    """The checkpoint is missing, damaged, or would be overwritten."""


class NoStableModelError(CheckpointError):
    """No model is stable yet: nothing was promoted."""
