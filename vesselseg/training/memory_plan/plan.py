"""The plan: bytes per GPU by phase of a training, main memory, size of a checkpoint, length of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vesselseg.machine import GIB
from vesselseg.models.sam2_grounding import IMAGES_AT_ONCE
from vesselseg.training.memory_plan import zero as ds
from vesselseg.training.memory_plan.activations import Activations, activations_of, encoding_bytes
from vesselseg.training.memory_plan.cards import Card
from vesselseg.training.memory_plan.host import Host, plan_host
from vesselseg.training.memory_plan.images import Images, training_images
from vesselseg.training.memory_plan.setup import Setup
from vesselseg.training.memory_plan.shapes import Shapes, shapes_of
from vesselseg.training.memory_plan.time import Time, estimate_time
from vesselseg.training.memory_plan.zero import Rows, ZeroBytes, zero_bytes
from vesselseg.training.plan import TrainPlan

MIB = 2**20
ACTIVATIONS, LOGITS = "activations", "logits"
FEATURES, ENCODING, WORKSPACE = "encoder features", "encoders at work", "workspace"

# Calibrated: torch caches freed blocks, some of them in sizes that are not needed again. Share of temporary tensors.
FRAGMENTATION = 0.15
# Calibrated: the same for weights and gradients that ZeRO-3 gathers and reduces on separate streams. A block serves the
# stream that it was allocated on, so that the computation cannot reuse it.
FRAGMENTATION_OF_STREAMS = 0.65
# A run may fit although its reserved memory does not, because torch releases cached blocks when it must. It needs at
# least this share beyond the peak.
LEAST_FRAGMENTATION = 0.02
# Calibrated: memory outside of torch: CUDA's context, and NCCL's buffers with several GPUs.
CONTEXT_GIB = 0.35
NCCL_GIB = 0.35
# Share of a GPU's nominal memory that is visible: a 24 GB RTX 3090 has 23.68 GiB.
VISIBLE = 0.985
# Matrix products run on two threads, forward and backward; cuBLAS and cuBLASLt have a workspace for each.
WORKSPACES = 4
DEFAULT_CUBLAS_MIB = 32


@dataclass(frozen=True)
class Target:
    """Hardware and data to plan for. gpus: processes. usable: bytes of each GPU for torch, None on the CPU.

    images: number of training images, None for the dataset's. per_machine: processes of one machine, None for all.
    """

    gpus: int
    usable: float | None
    card: Card | None = None
    images: int | None = None
    per_machine: int | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of a training by phase, and its length."""

    target: Target
    setup: Setup
    images: Images
    trainable: int  # elements
    parameters: int  # elements of the whole model
    phases: dict[str, Rows]  # bytes by row on one GPU, for each phase; empty on the CPU
    always: Rows  # bytes by row that are allocated during the whole training
    host: Host  # main memory and disk of one machine
    checkpoint: int  # bytes
    resume: int  # further bytes to resume from a checkpoint
    schedule: TrainPlan
    time: Time | None  # with a named GPU only

    @property
    def peak_phase(self) -> str:
        """The phase with the largest sum; there is none on the CPU, where only main memory is planned."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> float:
        """Peak of allocated bytes."""
        return sum(self.phases[self.peak_phase].values()) if self.phases else 0.0

    @property
    def reserved(self) -> float:
        """Peak of bytes that torch reserves on the GPU."""
        return max((self._reserved(rows) for rows in self.phases.values()), default=0.0)

    def _reserved(self, rows: Rows) -> float:
        streams = sum(rows.get(name, 0) for name in (ds.GATHERED, ds.BUCKETS)) if self.setup.stage == 3 else 0
        lasts = sum(value for name, value in self.always.items() if not (streams and name in (ds.GATHERED, ds.BUCKETS)))
        total = sum(rows.values())
        return total + FRAGMENTATION_OF_STREAMS * streams + FRAGMENTATION * max(0, total - streams - lasts)

    @property
    def fits(self) -> bool:
        """Whether the training can run."""
        return self.target.usable is None or self.peak * (1 + LEAST_FRAGMENTATION) <= self.target.usable

    @property
    def tight(self) -> bool:
        """Whether it fits only if torch releases cached blocks."""
        return self.fits and self.target.usable is not None and self.reserved > self.target.usable


def usable_bytes(gib: float, gpus: int) -> float:
    """Bytes for torch on a GPU with this nominal memory."""
    return (gib * VISIBLE - CONTEXT_GIB - (NCCL_GIB if gpus > 1 else 0)) * GIB


def plan_memory(config: Mapping[str, Any], target: Target) -> MemoryPlan:
    """Plan a checked config. Raises UserError and its subclasses for a base folder or data that cannot be read."""
    setup = Setup(config, target.gpus, on_gpu=target.usable is not None)
    shapes = shapes_of(setup.sa2va)
    images = training_images(config, shapes.processor, target.images)
    bytes_ = zero_bytes(setup, shapes)
    phases: dict[str, Rows] = {}
    activations = None
    if setup.on_gpu:
        activations = activations_of(setup, shapes, images)
        phases = _phases(setup, shapes, images, bytes_, activations, _workspace(target))
    size = setup.bytes_per_weight
    schedule = TrainPlan(images.count, target.gpus, setup.schedule)
    return MemoryPlan(
        target=target,
        setup=setup,
        images=images,
        trainable=shapes.trainable,
        parameters=sum(weight.numel for weight in shapes.weights),
        phases=phases,
        always=bytes_.always,
        host=plan_host(setup, shapes, images, bytes_, activations, target.per_machine or target.gpus),
        checkpoint=shapes.in_checkpoint * size,
        resume=shapes.trainable * ds.resume_bytes(setup),
        schedule=schedule,
        time=estimate_time(setup, shapes, images, schedule, target.card) if target.card else None,
    )


def _phases(
    setup: Setup, shapes: Shapes, images: Images, zero: ZeroBytes, act: Activations, workspace: float
) -> dict[str, Rows]:
    layers = shapes.layers
    again = setup.recomputed(layers)
    inputs = 0 if setup.activations_on_host else again * act.layer.input
    stored = inputs + (layers - again) * act.layer.kept + act.hidden
    at_work = max(0, act.layer.at_work - act.layer.kept * (again < layers))
    working = {WORKSPACE: workspace}
    running = _joined(zero.always, working)
    phases = {"build": zero.build, "engine start": _joined(zero.engine, working)}
    if setup.store is not None:
        some = {ENCODING: encoding_bytes(setup, shapes, IMAGES_AT_ONCE, IMAGES_AT_ONCE * images.tiles)[0]}
        before = {name: value for name, value in zero.always.items() if name != ds.MOMENTS}
        phases["feature store"] = _joined(before, zero.encoders, working, some)
    else:
        # Encoders run first, before the language model has any activations.
        phases["encoders"] = _joined(running, zero.gathered, {ENCODING: act.encoding})
    kept = {FEATURES: act.features}
    work = {ACTIVATIONS: stored + act.masks, LOGITS: act.logits}
    phases["masks"] = _joined(running, zero.gathered, zero.head, kept, work)
    if zero.answers:
        phases["answers"] = _joined(running, zero.answers, kept, {ACTIVATIONS: stored, LOGITS: act.logits})
    phases["language model"] = _joined(running, zero.gathered, kept, zero.backward, {ACTIVATIONS: stored + at_work})
    if zero.reduction:
        phases["reduction"] = _joined(running, zero.reduction)
    phases["optimizer step"] = _joined(running, zero.step)
    if setup.validation.interval is not None:
        one = {ENCODING: encoding_bytes(setup, shapes, 1, images.tiles)[0]}
        phases["validation"] = _joined(running, zero.encoders, zero.gathered, one)
    return phases


def _joined(*parts: Mapping[str, float]) -> Rows:
    rows: Rows = {}
    for part in parts:
        for name, value in part.items():
            rows[name] = rows.get(name, 0) + value
    return rows


def _workspace(target: Target) -> float:
    """Bytes of cuBLAS's workspaces."""
    return WORKSPACES * (target.card.cublas_mib if target.card else DEFAULT_CUBLAS_MIB) * MIB
