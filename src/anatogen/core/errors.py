"""The errors that are the user's to mend: the CLI prints them as one clear line, without a traceback."""

from anatogen.core.reasons import Refusal


class UserError(ValueError):
    """Something the user can mend; the message says what was wrong, the value, and the fix."""


class ConfigError(UserError):
    """A configuration is wrong; the message lists every problem at once."""


class StorageError(UserError):
    """A folder can't be written to: the disk is full or read-only, or it is another's."""


class ScanError(UserError):
    """A scan can't be read or can't be right; it crosses processes with its refusal.

    Attributes:
        refusal: The reason and its facts; the message is its text.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal
