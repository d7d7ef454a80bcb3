"""Weight files -> (name, tensor) pairs, one tensor at a time, without running any code in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vesselseg.errors import WeightsError
from vesselseg.models.checkpoints.json_files import read_json_object
from vesselseg.models.checkpoints.pickles import load_pickle, state_dict_of

WeightStream = Iterator[tuple[str, Tensor]]


def stream_folder(folder: Path) -> WeightStream:
    """Every tensor of a Hugging Face folder, shard after shard; safetensors files are preferred to pickles.

    Tensors of safetensors files are memory-mapped: only what is used is read.
    """
    index = _index(folder, "model.safetensors.index.json") or _index(folder, "pytorch_model.bin.index.json")
    if index:
        yield from _stream_index(folder, index)
        return
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            yield from stream_file(folder / name)
            return
    raise WeightsError(
        f"{folder}: no model.safetensors, pytorch_model.bin or index of shards; the download is incomplete"
    )


def folder_names(folder: Path) -> set[str]:
    """Names of all tensors of a folder, from an index or a safetensors header where there is one."""
    index = _index(folder, "model.safetensors.index.json") or _index(folder, "pytorch_model.bin.index.json")
    if index:
        return set(index)
    single = folder / "model.safetensors"
    if single.exists():
        with _opened(single) as opened:
            return set(opened.keys())
    return {name for name, _ in stream_folder(folder)}


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files; raises WeightsError if one is missing."""
    index = _index(folder, "model.safetensors.index.json") or _index(folder, "pytorch_model.bin.index.json")
    if index:
        _check_shards(folder, index)
        return [folder / name for name in sorted(set(index.values()))]
    single = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).exists()]
    if not single:
        next(stream_folder(folder))  # raises
    return single[:1]


def stream_headers(folder: Path) -> WeightStream:
    """Every tensor's name, shape and type, as a tensor on the meta device: no weight is read from safetensors."""
    for file in weight_files(folder):
        if file.suffix != ".safetensors":
            yield from ((name, tensor.to("meta")) for name, tensor in stream_file(file))
            continue
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                part = opened.get_slice(name)
                yield name, torch.empty(part.get_shape(), dtype=_DTYPES.get(part.get_dtype()), device="meta")


# safetensors' names of types; others count as float32
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def stream_file(path: Path) -> WeightStream:
    """Every tensor of one file, .safetensors or a pickle of a state dict."""
    if path.suffix == ".safetensors":
        with _opened(path) as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                yield name, opened.get_tensor(name)
        return
    yield from state_dict_of(load_pickle(path), path).items()


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not readable as safetensors ({error}); it is truncated, download it again"
        ) from None


def _index(folder: Path, name: str) -> dict[str, str] | None:
    """Tensor -> file beside the index; raises WeightsError for any other content."""
    path = folder / name
    if not path.exists():
        return None
    shards = read_json_object(path).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise WeightsError(f"{path}: not an index of shards: weight_map must name a file for each tensor")
    suffix = ".safetensors" if "safetensors" in name else ".bin"
    wrong = [shard for shard in set(shards.values()) if not _is_shard(shard, suffix)]
    if wrong:
        raise WeightsError(f"{path}: {min(wrong)[:80]!r} is no {suffix} file of the folder; download it again")
    return shards


def _is_shard(name: str, suffix: str) -> bool:
    """Whether it names a file in the index's own folder."""
    return name.endswith(suffix) and not set(name) & set("/\\:\0") and not name.startswith(".")


def _check_shards(folder: Path, weight_map: dict[str, str]) -> list[str]:
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise WeightsError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing, first {missing[0]}; download them"
        )
    return shards


def _stream_index(folder: Path, weight_map: dict[str, str]) -> WeightStream:
    shards = _check_shards(folder, weight_map)
    for shard in shards:
        promised = {name for name, file in weight_map.items() if file == shard}
        for name, tensor in stream_file(folder / shard):
            promised.discard(name)
            yield name, tensor
        if promised:
            raise WeightsError(f"{folder / shard}: lacks {len(promised)} tensors of its index, first {min(promised)}")
