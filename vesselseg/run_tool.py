"""What every command and script shares: bad input becomes one message on stderr and exit status 2, no traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import NoReturn

from vesselseg.errors import UserError, describe_os_error

BAD_INPUT = 2
INTERRUPTED = 130

# The file system's answers to what a user typed or has room for. Any other OSError is a defect of the program.
_USER_ERRNOS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ENOTEMPTY,
    errno.EXDEV,
    errno.EBUSY,
    errno.EIO,
    errno.ELOOP,
}


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main and exit with its status, see `exit_status`."""
    raise SystemExit(exit_status(main))


def exit_status(main: Callable[[], int | None]) -> int:
    """The status of main (None is 0); what a user can correct becomes a message.

    UserError and file-system errors (missing, not permitted, disk full) are "error: message" on stderr and status 2,
    Ctrl-C is status 130. Anything else is a defect of the program and keeps its traceback.
    """
    try:
        return main() or 0
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        message = describe_os_error(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    sys.stderr.write(f"error: {message}\n")
    return BAD_INPUT
