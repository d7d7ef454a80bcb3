"""Load a stream of tensors into a model, strictly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from vesselseg.errors import WeightsError
from vesselseg.models.checkpoints.shards import WeightStream, stream_file
from vesselseg.models.quantised import PackedLinear

Place = torch.device | str | Callable[[str], torch.device]
Assign = Callable[[Tensor, Tensor], None]  # (parameter or buffer of the model, tensor read)


def load_weights(
    model: nn.Module,
    stream: WeightStream,
    source: str,
    *,
    may_miss: str = "",
    may_ignore: str = "",
    device: Place = "cpu",
    dtype: torch.dtype | None = None,
    assign: Assign | None = None,
) -> None:
    """Copy each tensor of the stream to the model's entry with its name, one at a time.

    may_miss: regular expression of entries that the stream need not contain. may_ignore: of tensors to skip.
    device, dtype: for entries that are still on the meta device; a device, or a function name -> device.
    assign: replaces copying for entries that exist (ZeRO-3 partitions them).
    Raises WeightsError listing the first five missing, unexpected and misshapen names of each and their counts.
    """
    targets = _entries(model)
    seen: set[str] = set()
    unexpected, misshapen = [], []
    for name, tensor in stream:
        if may_ignore and re.search(may_ignore, name):
            continue
        target = targets.get(name)
        if target is None:
            unexpected.append(name)
            continue
        seen.add(name)
        expected = tuple(getattr(target, "ds_shape", target.shape))
        if expected != tuple(tensor.shape):
            misshapen.append(f"{name} is {tuple(tensor.shape)}, expected {expected}")
            continue
        _put(model, name, target, tensor, device(name) if callable(device) else device, dtype, assign)
    missing = [name for name in targets if name not in seen and not (may_miss and re.search(may_miss, name))]
    raise_for_keys(source, missing=missing, unexpected=unexpected, misshapen=misshapen)


def raise_for_keys(source: str, **findings: Iterable[str]) -> None:
    """Raise WeightsError with the number and the first five of each kind of finding, if there are any."""
    lines = []
    for kind, names in findings.items():
        listed = list(names)
        if listed:
            more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
            lines.append(f"  {len(listed)} {kind}: {', '.join(listed[:5])}{more}")
    if lines:
        raise WeightsError(f"{source}: the weights do not fit the model\n" + "\n".join(lines))


def load_sam2_file(sam2: nn.Module, path: Path) -> None:
    """Load `sam2_hiera_*.pt` or `sam2.1_hiera_*.pt` into a SAM2 of the same variant and version."""
    if not path.exists():
        raise WeightsError(
            f"{path} does not exist; it is one of the files sam2_hiera_{{tiny,small,base_plus,large}}.pt"
        )
    load_weights(sam2, stream_file(path), str(path))


def _entries(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; shared ones under each of their names."""
    return dict(model.state_dict(keep_vars=True))


def _put(
    model: nn.Module,
    name: str,
    target: Tensor,
    tensor: Tensor,
    device: torch.device | str,
    dtype: torch.dtype | None,
    assign: Assign | None,
) -> None:
    with torch.no_grad():
        if target.is_meta:
            owner, _, leaf = name.rpartition(".")
            # copy=True: a view of a memory-mapped file would keep the whole file open.
            created = tensor.to(device=device, dtype=dtype or tensor.dtype, copy=True)
            module = model.get_submodule(owner)
            if isinstance(module, PackedLinear) and leaf == "weight":
                module.pack(created)
                return
            module._parameters[leaf] = nn.Parameter(created, requires_grad=target.requires_grad)
        elif assign is not None:
            assign(target, tensor)
        else:
            target.copy_(tensor)
