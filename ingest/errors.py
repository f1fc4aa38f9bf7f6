"""Errors of this room.

IngestError
|- ManifestError    the file as a whole cannot be read: nothing was stored
`- RowError         one row, or one part of it, is wrong: it is quarantined and the run goes on
"""


class IngestError(Exception):
    """Base of all errors of this room."""


class ManifestError(IngestError):
    """A manifest that cannot be read as a whole; nothing was stored."""


class RowError(IngestError):
    """One row is wrong.

    Args:
        code: a short machine-readable reason, such as `duplicate_item_id`.
        message: the reason for people, with the value and the remedy.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
