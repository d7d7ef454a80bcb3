"""What every tool shares: bad input becomes one message on stderr and exit status 2, never a traceback."""

from __future__ import annotations

import argparse
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
    """Run a tool's main and exit with its status (None is 0).

    UserError and file-system errors (missing, not permitted, disk full) end as "error: message" on
    stderr with status 2, Ctrl-C with status 130. Anything else is a defect of the program and keeps its traceback.
    """
    try:
        status = main()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        _fail(describe_os_error(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(0 if status is None else status)


def positive(text: str) -> int:
    """A whole number from 1, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(BAD_INPUT) from None
