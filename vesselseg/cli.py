"""What every tool shares: bad input becomes one message on stderr and exit status 2, never a traceback."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar

from tqdm import tqdm

from vesselseg.data.manifest import ManifestError
from vesselseg.errors import UserError

__all__ = ["UserError", "batch_progress", "describe_os_error", "positive", "progress_bar", "run_tool"]

_Item = TypeVar("_Item")

BAD_INPUT = 2
INTERRUPTED = 130
_SELDOM = 30.0  # seconds between two states of a bar in a log

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
_HINTS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "no permission; check who owns the folder or choose another one",
    errno.EPERM: "no permission; check who owns the folder or choose another one",
    errno.EROFS: "the file system is read-only; choose another folder",
}


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run a tool's main and exit with its status (None is 0).

    UserError, ManifestError and file-system errors (missing, not permitted, disk full) end as "error: message" on
    stderr with status 2, Ctrl-C with status 130. Anything else is a defect of the program and keeps its traceback.
    """
    try:
        status = main()
    except (UserError, ManifestError) as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        _fail(describe_os_error(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(0 if status is None else status)


def describe_os_error(error: OSError) -> str:
    """A file-system error as one sentence with its file and what to do."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = f"{' -> '.join(names)}: " if names else ""
    hint = _HINTS.get(error.errno or 0)
    return f"{where}{error.strerror or error}" + (f" ({hint})" if hint else "")


def positive(text: str) -> int:
    """A whole number from 1, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def batch_progress(batches: Sequence[Sequence[_Item]], title: str) -> Iterator[Sequence[_Item]]:
    """The batches, with a bar that counts their images."""
    with progress_bar(sum(len(batch) for batch in batches), title, "image") as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def progress_bar(total: int, title: str, unit: str, hidden: bool = False) -> tqdm[NoReturn]:
    """A bar on stderr; in a log, which is no terminal, only of what takes long, and drawn every half minute."""
    delay, every = (0.0, 0.1) if sys.stderr.isatty() else (_SELDOM, _SELDOM)
    return tqdm(total=total, desc=title, unit=unit, disable=hidden, delay=delay, mininterval=every)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(BAD_INPUT) from None
