"""What can go wrong with a ranker, as one small tree.

RankerError
├── TrainingSetError   a training set folder cannot be used
│   └── TooFewError    there is too little in it
├── ResumeError        an unfinished training cannot go on
├── CheckpointError    a checkpoint is missing, damaged, or would be overwritten
├── NoStableModelError no model was promoted yet
└── EvaluationError    what is to be measured cannot be
    └── LeakageError   something of the test, or of the future, is where models learn from
"""


class RankerError(Exception):
    """Base of all errors of this room; the message says what to do."""


class TrainingSetError(RankerError):
    """The training set is missing, damaged, or has too little in it."""


class TooFewError(TrainingSetError):
    """The training set has too little in it."""


class ResumeError(RankerError):
    """An unfinished training cannot go on: it is of other settings or data, or its file is damaged."""


class CheckpointError(RankerError):
    """The checkpoint is missing, damaged, or would be overwritten."""


class NoStableModelError(CheckpointError):
    """No model is stable yet: nothing was promoted."""


class EvaluationError(RankerError):
    """What is to be measured cannot be: arrays that do not fit together, or too little in them."""


class LeakageError(EvaluationError):
    """Something of the test, or of the future, is where models learn from; the message names the first offender."""
