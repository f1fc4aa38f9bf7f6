"""Errors of this room.

IngestError
|- ManifestError    the file as a whole cannot be read, from its start or from some row on
`- RowError         one row, or one part of it, is wrong: it is quarantined and the run goes on
"""


class IngestError(Exception):
    """Base of all errors of this room."""


class ManifestError(IngestError):
    """A file that cannot be read: found at once, before anything is stored, or at a later row, after whole chunks were."""


class RowError(IngestError):
    """One row is wrong.

    Args:
        code: a short machine-readable reason, such as `duplicate_item_id`.
        message: the reason for people, with the value and the remedy.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
