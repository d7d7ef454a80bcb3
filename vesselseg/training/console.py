"""A readable console: messages of this package from one process, and only errors of other packages."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOISY = (
    "DeepSpeed",
    "torch.utils.cpp_extension",
    "torch.distributed",
    "mmengine",
    "xtuner",
    "transformers",
    "numexpr",
    "bitsandbytes",
)


def quieten_imports() -> None:
    """Silence the messages that torch, DeepSpeed and xtuner print on import; to be called before they are imported."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    warnings.filterwarnings("ignore")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(name).addFilter(_errors_only)  # DeepSpeed sets its own level again when it is imported


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def muted() -> Iterator[None]:
    """Within the context, nothing written to stdout or stderr is shown, not even by subprocesses.

    On import, DeepSpeed asks the linker which of its operators could be built, and the linker prints errors.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as nowhere:
        kept = os.dup(1), os.dup(2)
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)


def set_up(rank: int) -> None:
    """Messages of vesselseg on the console: all of the first process, errors of the others."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    package = logging.getLogger("vesselseg")
    package.handlers = [handler]
    package.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    package.propagate = False


def log_to_file(path: Path) -> None:
    """Append this process's messages to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger("vesselseg").addHandler(handler)
