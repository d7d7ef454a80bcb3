"""Load files of torch.save without running code that they may contain."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesselseg.errors import WeightsError


class NotRead:
    """Replaces objects that mmengine saves with the weights (loss histories, arrays), which are not read."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


# Classes and functions in mmengine's checkpoints besides tensors. They are never imported: NotRead replaces them.
_NOT_READ = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",  # by which older pickles name a class's methods
    "__builtin__.getattr",
    "_codecs.encode",
    *(
        f"{module}.multiarray.{name}"
        for module in ("numpy.core", "numpy._core")
        for name in ("_reconstruct", "scalar", "_frombuffer")
    ),
    *(f"{module}.numeric._frombuffer" for module in ("numpy.core", "numpy._core")),
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
)


def load_pickle(path: Path) -> Any:
    """The content of a file of torch.save, on the CPU; raises WeightsError with the reason."""
    stand_ins: list[Callable | tuple[Callable, str]] = [(NotRead, name) for name in _NOT_READ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # a damaged pickle may raise any exception
        raise WeightsError(
            f"{path}: refused, since it cannot be opened as plain tensors ({_reason(error)}). It is truncated or "
            "contains code; download it again or, if you trust it, convert it to safetensors"
        ) from None


def _reason(error: Exception) -> str:
    """torch's finding, without its advice to load the file with weights_only=False."""
    found = re.search(
        r"Unsupported (?:global|class|operand)[^\n]*?(?= was not an allowed| by default|\.? Please|\n|$)", str(error)
    )
    lines = str(error).splitlines() or [type(error).__name__]
    return found.group(0) if found else lines[0][:300]


def state_dict_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file: bare, or under `model` (SAM2) or `state_dict` (mmengine)."""
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: holds no state dict of tensors")
    return content


def _is_zip(path: Path) -> bool:
    """Files written before torch 1.6 cannot be memory-mapped."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"
