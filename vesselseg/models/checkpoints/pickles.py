"""torch's own files, opened so that nothing in them can run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesselseg.errors import WeightsError


class NotRead:
    """Stands in for what mmengine keeps beside the weights (histories of losses, arrays): none of it is read."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


# What a checkpoint of mmengine names beside tensors. The names are never resolved: the stand-in takes their place.
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
    """A torch file's content on the CPU; raises WeightsError with the reason."""
    stand_ins: list[Callable | tuple[Callable, str]] = [(NotRead, name) for name in _NOT_READ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # a damaged pickle fails in any way that its bytes lead to
        raise WeightsError(
            f"{path}: refused, since it cannot be opened as plain tensors ({_reason(error)}). It is cut short or "
            "carries code; get it again from its source or convert it to safetensors where you trust it"
        ) from None


def _reason(error: Exception) -> str:
    """What torch found, without its advice to open the file all the same."""
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
