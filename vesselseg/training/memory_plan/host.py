"""Main memory and disk that a training needs on one machine."""

from __future__ import annotations

from dataclasses import dataclass

from vesselseg.training.memory_plan.activations import Activations
from vesselseg.training.memory_plan.images import Images
from vesselseg.training.memory_plan.setup import Setup
from vesselseg.training.memory_plan.shapes import Shapes
from vesselseg.training.memory_plan.zero import FROZEN, Rows, ZeroBytes, leaves_for_host, pinned_bytes

MIB = 2**20
# Measured on Linux with torch 2.12: a training process with its libraries, CUDA, a loader process.
PROCESS_MIB, CUDA_MIB, WORKER_MIB = 900, 1500, 150
FLOAT = 4


@dataclass(frozen=True)
class Host:
    """memory: bytes of all processes of one machine by row. disk: bytes of the feature store, 0 if none is on disk."""

    memory: Rows
    disk: float

    @property
    def total(self) -> float:
        """Bytes of main memory."""
        return sum(self.memory.values())


def plan_host(
    setup: Setup, shapes: Shapes, images: Images, zero: ZeroBytes, act: Activations | None, processes: int
) -> Host:
    """All `processes` of one machine. act: of one micro-batch on one GPU; None without a GPU, not counted then."""
    memory: Rows = {"processes": (PROCESS_MIB + (CUDA_MIB if setup.on_gpu else 0)) * MIB * processes}
    if not setup.on_gpu:
        memory["weights and optimizer"] = sum(zero.always.values()) * processes
    away = [weight.numel for weight in shapes.weights if leaves_for_host(setup, shapes, weight)]
    memory["embedding table"] = sum(away) * setup.bytes_per_weight * processes
    memory["encoders"] = zero.encoders.get(FROZEN, 0) * processes
    for name, value in zero.host.items():
        memory[f"{name} (offload)"] = value * processes
    if act and setup.activations_on_host:
        again = setup.recomputed(shapes.layers)
        memory["activations"] = pinned_bytes(act.layer.input) * again * processes
    memory["loading"] = _loading(setup, shapes, images, act) * processes
    kept = act.features / setup.schedule.micro_batch * setup.views_per_image * images.count if act else 0
    if setup.store == "memory":
        memory["feature store"] = kept
    return Host({name: value for name, value in memory.items() if value}, kept if setup.store == "disk" else 0.0)


def _loading(setup: Setup, shapes: Shapes, images: Images, act: Activations | None) -> float:
    """Loader processes, the batches that they prefetch, and pinned copies of two batches."""
    loader, batch = setup.loader, setup.schedule.micro_batch
    if act and setup.store:
        views = act.features
    else:
        tile, side = shapes.model.config.force_image_size, shapes.model.grounding.image_size
        views = batch * FLOAT * 3 * (images.tiles * tile**2 + side**2)
    one = views + batch * images.most_objects * images.height * images.width
    ready = loader.num_workers * loader.prefetch
    return loader.num_workers * WORKER_MIB * MIB + one * (ready + 1) + (2 * pinned_bytes(one) if setup.on_gpu else 0)
