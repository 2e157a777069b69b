"""The errors that are the user's to mend: the CLI prints them as one clear line, without a traceback."""


class UserError(ValueError):
    """Something the user can mend; the message says what was wrong, the value, and the fix."""


class ConfigError(UserError):
    """A configuration is wrong; the message lists every problem at once."""


class ScanError(UserError):
    """A scan can't be read or can't be right; the message is the reason, without a path or patient data."""
