"""Optimizer state as one file: complete float32 master weights and Adam's two moments by parameter name.

DeepSpeed keeps flat partitions, which differ with the number of processes and the ZeRO stage. Writing gathers one
tensor at a time on all processes; the first process writes it under the names of its parameters. Reading takes from
each complete tensor the partition that a process needs, for any number of processes and any stage. The file is in the
safetensors format, with the step count as metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vesselseg.errors import WeightsError
from vesselseg.training.flat_parameters import FlatBuffer

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
FLOAT32_BYTES = 4


def write_optimizer_state(path: Path, engine: Any) -> None:
    """Write the state of a DeepSpeed engine (ZeRO 1 to 3) after an optimizer step; a collective call.

    Before the first step there are no moments, and none are written.
    """
    steps = _steps_taken(engine)
    kinds = (MASTER, *MOMENTS) if steps else (MASTER,)
    buffers = trained_buffers(engine)
    if torch.distributed.get_rank():
        for _ in _whole_tensors(buffers, kinds):
            continue
        return
    with path.open("wb") as file:
        _write_header(file, _by_name(buffers), kinds, steps)
        for tensor in _whole_tensors(buffers, kinds):
            file.write(tensor.to("cpu", torch.float32).reshape(-1).numpy().data)


def read_optimizer_state(path: Path, engine: Any) -> None:
    """Load a written state into an engine; every process reads its own partitions. Raises WeightsError."""
    buffers = trained_buffers(engine)
    try:
        with safe_open(str(path), framework="pt") as file:
            steps = int((file.metadata() or {})["steps"])
            kinds = (MASTER, *MOMENTS) if steps else (MASTER,)
            _check_names(path, _by_name(buffers), kinds, set(file.keys()))
            if steps:
                _make_moments(engine, steps)
            for kind in kinds:
                for buffer in buffers:
                    values = [_read(file, f"{kind}.{name}", parameter, path) for name, parameter in buffer.parts]
                    _put(
                        buffer.tensor,
                        values[0] if len(values) == 1 else torch.cat([v.reshape(-1) for v in values]),
                        kind,
                    )
    except (SafetensorError, OSError, KeyError) as error:
        raise WeightsError(
            f"{path}: no optimizer state, or a truncated one ({error}); resume from another checkpoint"
        ) from None


def trained_buffers(engine: Any) -> list[FlatBuffer]:
    """The tensors that DeepSpeed steps on, with the names of their parameters."""
    if engine.flat_parameters is not None:
        return engine.flat_parameters.buffers
    trained = [(name, one) for name, one in engine.module.named_parameters() if one.requires_grad]
    return [FlatBuffer(one, ((name, one),)) for name, one in trained]


def _by_name(buffers: list[FlatBuffer]) -> dict[str, nn.Parameter]:
    return {name: parameter for buffer in buffers for name, parameter in buffer.parts}


def _whole_tensors(buffers: list[FlatBuffer], kinds: tuple[str, ...]) -> Iterator[Tensor]:
    """Each tensor in float32, gathered from all processes, in the file's order."""
    for kind in kinds:
        for buffer in buffers:
            if kind == MASTER:
                yield safe_get_full_fp32_param(buffer.tensor)
            else:
                yield safe_get_full_optimizer_state(buffer.tensor, kind)


def _write_header(file: IO[bytes], parameters: dict[str, nn.Parameter], kinds: tuple[str, ...], steps: int) -> None:
    content: dict[str, Any] = {"__metadata__": {"steps": str(steps)}}
    end = 0
    for kind in kinds:
        for name, parameter in parameters.items():
            begin, end = end, end + _elements(parameter) * FLOAT32_BYTES
            content[f"{kind}.{name}"] = {"dtype": "F32", "shape": _shape(parameter), "data_offsets": [begin, end]}
    header = json.dumps(content).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)


def _check_names(path: Path, parameters: dict[str, nn.Parameter], kinds: tuple[str, ...], found: set[str]) -> None:
    expected = {f"{kind}.{name}" for kind in kinds for name in parameters}
    if expected != found:
        missing, further = sorted(expected - found), sorted(found - expected)
        raise WeightsError(
            f"{path}: the trainable parameters differ from those in the file: {len(missing)} are missing in it "
            f"({', '.join(missing[:3]) or 'none'}), {len(further)} are not trained any more "
            f"({', '.join(further[:3]) or 'none'}). Train the same ones, or start a new run from the weights with "
            f"--cfg-options load_from={path.parent.with_suffix('.pth')}"
        )


def _read(file: Any, entry: str, parameter: nn.Parameter, path: Path) -> Tensor:
    value = file.get_tensor(entry)
    if list(value.shape) != _shape(parameter):
        raise WeightsError(
            f"{path}: {entry} is {list(value.shape)}, expected {_shape(parameter)}; it belongs to another model"
        )
    return value


def _put(parameter: Any, value: Tensor, kind: str) -> None:
    if not hasattr(parameter, "ds_id"):
        if kind == MASTER:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)
        return
    # DeepSpeed's own partitioning of a complete tensor fails where the number of processes does not divide it.
    length, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    piece = value.new_zeros(length)
    own = value.reshape(-1)[rank * length : (rank + 1) * length]
    piece[: len(own)] = own
    if kind == MASTER:
        safe_set_local_fp32_param(parameter, piece)
    else:
        safe_set_local_optimizer_state(parameter, piece, kind)


def _flat_partitions(engine: Any) -> list[Tensor]:
    """This process's flat float32 partitions, which the optimizer steps on."""
    zero = engine.optimizer
    partitions = getattr(zero, "fp32_partitioned_groups_flat", None)  # ZeRO-3
    return zero.single_partition_of_fp32_groups if partitions is None else partitions


def _steps_taken(engine: Any) -> int:
    states = engine.optimizer.optimizer.state
    steps = {int(states[part]["step"]) for part in _flat_partitions(engine) if states.get(part)}
    return max(steps, default=0)


def _make_moments(engine: Any, steps: int) -> None:
    """Create what the optimizer creates in its first step: the moments, and the step count of the bias correction."""
    inner = engine.optimizer.optimizer
    for piece in _flat_partitions(engine):
        device = piece.device if inner.defaults.get("fused") else "cpu"
        counted = isinstance(inner, DeepSpeedCPUAdam)
        inner.state[piece] = {
            "step": steps if counted else torch.tensor(float(steps), device=device),
            **{kind: torch.zeros_like(piece, requires_grad=False) for kind in MOMENTS},
        }
    if hasattr(engine.optimizer, "single_partition_of_fp32_groups"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _shape(parameter: nn.Parameter) -> list[int]:
    return list(getattr(parameter, "ds_shape", parameter.shape))


def _elements(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
