"""Run commands in Python's UTF-8 mode: names of files are the bytes that they were, whatever the locale is."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_TERMINAL = "VESSELSEG_TERMINAL_ENCODING"


def ensure_utf8(arguments: Sequence[str]) -> None:
    """Start this process again in UTF-8 mode if the locale has another encoding; text on a terminal keeps its own.

    In a locale of GB 18030 or ISO 8859-1, names in UTF-8 would become other names, and others could not be written.
    arguments: of the command; nothing happens unless they are this process's own.
    """
    own = sys.argv[1:]
    if list(arguments)[len(arguments) - len(own) :] != own:
        return
    if sys.flags.utf8_mode and _TERMINAL in os.environ:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and stream.isatty():
                stream.reconfigure(encoding=os.environ[_TERMINAL], errors="backslashreplace")  # type: ignore[union-attr]
        return
    if sys.getfilesystemencoding().lower().replace("-", "") == "utf8" or sys.flags.ignore_environment:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "", _TERMINAL: encoding}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
