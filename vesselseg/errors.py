"""Errors whose message is for the user: every tool ends with it on one line and exit status 2."""


class UserError(ValueError):
    """Input that the user can correct; the message says what, where, expected, found and what to do."""


class WeightsError(UserError):
    """A weight file or folder that cannot be used; the message names file, finding and way out."""
