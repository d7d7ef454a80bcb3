"""Errors whose message is for the user: every tool ends with it on one line and exit status 2."""

from __future__ import annotations

import errno

_HINTS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "no permission; check who owns the folder or choose another one",
    errno.EPERM: "no permission; check who owns the folder or choose another one",
    errno.EROFS: "the file system is read-only; choose another folder",
}


class UserError(ValueError):
    """Input that the user can correct; the message says what, where, expected, found and what to do."""


class WeightsError(UserError):
    """A weight file or folder that cannot be used; the message names file, finding and way out."""


class ConfigError(UserError):
    """A config that cannot run; the message lists everything that is wrong with it."""


class ManifestError(UserError):
    """annotations.json or splits.json is not what a dataset folder must hold; the message lists every problem."""


def describe_os_error(error: OSError) -> str:
    """A file-system error as one sentence with its file and what to do."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = f"{' -> '.join(names)}: " if names else ""
    hint = _HINTS.get(error.errno or 0)
    return f"{where}{error.strerror or error}" + (f" ({hint})" if hint else "")
