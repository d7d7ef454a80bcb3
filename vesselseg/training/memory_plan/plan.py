"""The plan: bytes per GPU by phase of a training, main memory, checkpoint and length of the run."""

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

# Calibrated: torch keeps freed blocks for later, of sizes that do not all come again. A share of what comes and goes.
FRAGMENTATION = 0.15
# Calibrated: the same of what ZeRO-3 gathers and reduces on streams of its own. A block serves the stream that it was
# made for, so that the computation cannot have what these have freed.
FRAGMENTATION_OF_STREAMS = 0.65
# A run may fit although its reserved memory does not: torch gives kept blocks back when it must. Below this share
# beyond the peak it cannot.
LEAST_FRAGMENTATION = 0.02
# Calibrated: outside of torch. CUDA's own context, and NCCL's buffers where there are several GPUs.
CONTEXT_GIB = 0.35
NCCL_GIB = 0.35
# What a card shows of its nominal memory: a 24 GB RTX 3090 has 23.68 GiB.
VISIBLE = 0.985
# Products run on two threads, forward and backward, and cuBLAS and cuBLASLt have a workspace for each.
WORKSPACES = 4
DEFAULT_CUBLAS_MIB = 32


@dataclass(frozen=True)
class Target:
    """What is planned for. gpus: processes. usable: bytes of each GPU that torch may have, None on the CPU.

    images: training images, None for those of the data set. per_machine: processes of one machine, None for all.
    """

    gpus: int
    usable: float | None
    card: Card | None = None
    images: int | None = None
    per_machine: int | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """phases: bytes by row for each part of a training, on one GPU. host: main memory and disk of one machine."""

    target: Target
    setup: Setup
    images: Images
    trainable: int
    parameters: int
    phases: dict[str, Rows]
    always: Rows
    host: Host
    checkpoint: int
    resume: int
    schedule: TrainPlan
    time: Time | None

    @property
    def peak_phase(self) -> str:
        """The phase that holds most; none on the CPU, where only main memory is planned."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> float:
        """Most bytes that are allocated at once."""
        return sum(self.phases[self.peak_phase].values()) if self.phases else 0.0

    @property
    def reserved(self) -> float:
        """Most bytes that torch takes from the GPU."""
        return max((self._reserved(rows) for rows in self.phases.values()), default=0.0)

    def _reserved(self, rows: Rows) -> float:
        streams = sum(rows.get(name, 0) for name in (ds.GATHERED, ds.BUCKETS)) if self.setup.stage == 3 else 0
        lasts = sum(value for name, value in self.always.items() if not (streams and name in (ds.GATHERED, ds.BUCKETS)))
        total = sum(rows.values())
        return total + FRAGMENTATION_OF_STREAMS * streams + FRAGMENTATION * max(0, total - streams - lasts)

    @property
    def fits(self) -> bool:
        """Whether it can run at all."""
        return self.target.usable is None or self.peak * (1 + LEAST_FRAGMENTATION) <= self.target.usable

    @property
    def tight(self) -> bool:
        """Whether it fits only if torch gives back what it keeps."""
        return self.fits and self.target.usable is not None and self.reserved > self.target.usable


def usable_bytes(gib: float, gpus: int) -> float:
    """Bytes that torch may have of a card with so much nominal memory."""
    return (gib * VISIBLE - CONTEXT_GIB - (NCCL_GIB if gpus > 1 else 0)) * GIB


def plan_memory(config: Mapping[str, Any], target: Target) -> MemoryPlan:
    """Plan a checked config. Raises UserError and its kin for a base folder or data that cannot be read."""
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
        # Encoders run first: nothing of the language model is kept yet.
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
    """cuBLAS's."""
    return WORKSPACES * (target.card.cublas_mib if target.card else DEFAULT_CUBLAS_MIB) * MIB
