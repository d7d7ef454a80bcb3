"""Memory of DeepSpeed 0.18 in bytes, from stage_1_and_2.py, stage3.py and partition_parameters.py.

The names below are the rows of the plan's table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from vesselseg.models.quantised import NF4_BYTES
from vesselseg.training.flat_parameters import MAX_BUFFER, is_worth_flattening
from vesselseg.training.memory_plan.setup import Setup
from vesselseg.training.memory_plan.shapes import BLOCKS, Shapes, Weight

FROZEN, TRAINABLE, GATHERED = "frozen weights", "trainable weights", "gathered weights"
MASTERS, MOMENTS, AVERAGE = "float32 masters", "optimizer states", "averaged weights"
GRADIENTS, BUCKETS, STEP = "gradients", "communication buckets", "optimizer step"

# `_has_inf_or_nan`: a float32 copy, three masks, and their result as float32.
OVERFLOW_BYTES = 4 + 3 + 4
NORM_BYTES = 8  # norms are taken in float64
MOMENT_BYTES = 8  # two float32 moments
MASTER_BYTES = 4
AVERAGE_BYTES = 4
# Dense weights are rounded up to this many elements for each process.
ALIGNMENT = 2

Rows = dict[str, float]


@dataclass(frozen=True)
class ZeroBytes:
    """Bytes on one GPU by row, for each phase."""

    build: Rows  # weights while the model is built
    always: Rows  # during training, after the first optimizer step has created the moments
    engine: Rows  # when the engine starts, in total
    encoders: Rows  # their weights, if stored features keep them off the GPU
    backward: Rows  # gradients while they are computed
    step: Rows  # in the optimizer step
    reduction: Rows = field(
        default_factory=dict
    )  # gradients while they are reduced, if that is after the backward pass
    gathered: Rows = field(default_factory=dict)  # gathered weights of ZeRO-3
    head: Rows = field(default_factory=dict)  # in addition to these and the masks, while the head is gathered
    answers: Rows = field(default_factory=dict)  # instead of these, if the head is gathered without the masks
    host: Rows = field(default_factory=dict)  # main memory of one process


def zero_bytes(setup: Setup, shapes: Shapes) -> ZeroBytes:
    """For ZeRO stage 1 to 3."""
    return _stage_3(setup, shapes) if setup.stage == 3 else _stage_1_and_2(setup, shapes)


def resume_bytes(setup: Setup) -> int:
    """Of a trained element on disk: master and moments, and with an average that and the weight itself."""
    average = AVERAGE_BYTES + setup.bytes_per_weight if setup.schedule.ema else 0
    return MASTER_BYTES + MOMENT_BYTES + average


def partition(elements: int, processes: int) -> int:
    """Elements of one process's partition."""
    aligned = math.ceil(elements / (ALIGNMENT * processes)) * ALIGNMENT * processes
    return aligned // processes


def frozen_bytes(setup: Setup, weights: Iterable[Weight]) -> float:
    """Frozen weights of a GPU with all of these."""
    sizes = (NF4_BYTES if setup.quantised and w.in_4_bits else setup.bytes_per_weight for w in weights)
    return sum(w.numel * size for w, size in zip(weights, sizes) if not w.trainable)


def leaves_for_host(setup: Setup, shapes: Shapes, weight: Weight) -> bool:
    """Whether the weight is the embedding table and stays in main memory."""
    return weight.is_embedding and setup.embedding_on_host and not shapes.text.tie_word_embeddings


def _stage_1_and_2(setup: Setup, shapes: Shapes) -> ZeroBytes:
    """DeepSpeed sees the flat buffers of `flat_parameters`, whose gradients accumulate outside of it.

    If more elements train than flat buffers are used for, each process accumulates its partition, in main memory if the
    optimizer is there.
    """
    size, trains = setup.bytes_per_weight, shapes.trainable
    flat = is_worth_flattening(trains)
    part = partition(trains, setup.gpus)
    largest, on_host = (
        max(shapes.largest(trainable=True), min(MAX_BUFFER, trains) if flat else 0),
        setup.optimizer_on_host,
    )
    here = [weight for weight in shapes.weights if not leaves_for_host(setup, shapes, weight)]
    encoders = frozen_bytes(setup, [w for w in here if w.is_encoder]) if setup.store else 0.0
    frozen = frozen_bytes(setup, here)
    collected = trains if flat or setup.stage == 1 else 0 if on_host else part
    trained: Rows = {TRAINABLE: size * trains, GRADIENTS: size * collected}
    states: Rows = {} if on_host else {MASTERS: MASTER_BYTES * part, MOMENTS: MOMENT_BYTES * part}
    if setup.schedule.ema:
        states[AVERAGE] = AVERAGE_BYTES * trains
    # DeepSpeed copies the weights; then it creates the master weights, next to zeros of a temporary gradient.
    start = size * trains + (0 if on_host else 2 * MASTER_BYTES * part)
    return ZeroBytes(
        build={FROZEN: frozen_bytes(setup, shapes.weights), TRAINABLE: size * trains},
        always={FROZEN: frozen - encoders, **trained, **states},
        engine={FROZEN: frozen, **trained, STEP: start},
        encoders={FROZEN: encoders},
        backward={GRADIENTS: size * shapes.largest(trainable=True)},  # until it is added to the collected one
        reduction=_reduction(setup, largest, part if flat else 0),
        step={} if on_host else {STEP: _step(size, part, min(largest, part))},
        host=_offloaded_optimizer(setup, part, largest) if on_host else {},
    )


def _reduction(setup: Setup, largest: int, part: int) -> Rows:
    """At the end of an accumulation group, one large gradient after the other is copied, reduced and partitioned.

    The bucket exists twice with overlap_comm, and once more as a copy if it spans two owners. A gradient larger
    than the bucket is reduced alone. With the optimizer on the host, each gradient passes through a buffer and is
    checked.
    """
    zero, size = setup.zero, setup.bytes_per_weight
    bucket = zero.reduce_bucket_size * (2 if zero.overlap_comm else 1)
    copy = max(zero.reduce_bucket_size, largest) if setup.gpus > 1 else 0
    if not setup.optimizer_on_host:
        kept = part if setup.stage == 2 else 0
        return {BUCKETS: size * (bucket + copy), GRADIENTS: size * (largest + kept)}
    checked = max(OVERFLOW_BYTES * largest, NORM_BYTES * min(largest, part))
    return {BUCKETS: size * bucket, GRADIENTS: 2 * size * largest + max(size * copy, checked)}


def _step(size: int, part: int, largest_piece: int) -> float:
    """Checks and norm of one gradient after the other; then a flat copy, and its float32 version."""
    checks = size * part + max(OVERFLOW_BYTES, NORM_BYTES) * largest_piece
    flattened = size * part + size * part + (MASTER_BYTES * part if size < MASTER_BYTES else 0)
    return max(checks, flattened)


def _offloaded_optimizer(setup: Setup, part: int, largest: int) -> Rows:
    """Pinned: master weights, their gradients, returning weights, accumulated gradients; moments are not pinned."""
    size = setup.bytes_per_weight
    pinned = [MASTER_BYTES * part, MASTER_BYTES * part, size * part, size * largest]
    if setup.schedule.accumulation > 1:
        pinned.append(size * part)
    # Before they are pinned, master weights and returning weights exist twice.
    return {"optimizer": sum(map(pinned_bytes, pinned)) + MOMENT_BYTES * part + size * part}


def pinned_bytes(size: float) -> int:
    """torch rounds page-locked blocks up to a power of two."""
    return 2 ** math.ceil(math.log2(size)) if size >= 1 else 0


def _stage_3(setup: Setup, shapes: Shapes) -> ZeroBytes:
    zero, size, processes = setup.zero, setup.bytes_per_weight, setup.gpus
    small = sum(w.numel for w in shapes.weights if w.numel <= zero.param_persistence_threshold)
    frozen = sum(math.ceil(w.numel / processes) for w in shapes.weights if not w.trainable)
    part = sum(math.ceil(w.numel / processes) for w in shapes.weights if w.trainable)
    weights: Rows = {} if setup.weights_on_host else {FROZEN: size * frozen, TRAINABLE: size * part}
    states: Rows = {MASTERS: MASTER_BYTES * part, MOMENTS: MOMENT_BYTES * part, GRADIENTS: size * part}
    bucket = size * zero.reduce_bucket_size
    largest = shapes.largest(trainable=True)
    on_host = setup.optimizer_on_host
    host: Rows = {}
    if setup.weights_on_host:
        host["weights"] = size * frozen + pinned_bytes(size * part)
    if on_host:
        pinned = [MASTER_BYTES * part, size * part]
        host["optimizer"] = sum(map(pinned_bytes, pinned)) + (MASTER_BYTES + MOMENT_BYTES) * part
    return ZeroBytes(
        build={**weights, GATHERED: size * 2 * shapes.largest()},
        always={**weights, GATHERED: size * small, BUCKETS: bucket, **({} if on_host else states)},
        # Two copies of the master weights while they are created.
        engine={**weights, GATHERED: size * small, STEP: 0 if on_host else 2 * MASTER_BYTES * part},
        encoders={},  # partitions are not moved
        # Gradients are copied to be scattered; one that exceeds the bucket is reduced alone.
        backward={BUCKETS: bucket + (2 * size * largest if largest > zero.reduce_bucket_size else 0)},
        step={} if on_host else {STEP: _step(size, part, min(largest, part))},
        gathered={GATHERED: _gathered(setup, shapes)},
        **_arriving_head(setup, shapes),
        host=host,
    )


def _arriving_head(setup: Setup, shapes: Shapes) -> dict[str, Rows]:
    """The head exists twice until it is copied out of the buffer that received it, next to its partition from the host.

    Matrix by matrix, prefetching ends with the weight that fills the bucket, which is the head. Whole layers of the
    backward pass are fetched after it: while it is gathered, none is present.
    """
    size, largest = setup.bytes_per_weight, shapes.largest()
    if not setup.whole_layers:
        return {"head": {GATHERED: size * largest}}
    return {"answers": {GATHERED: size * (2 * largest + _from_host(setup, largest))}}


def _from_host(setup: Setup, numel: int) -> int:
    """Bytes of this process's partition of a weight, while it is sent to the others."""
    return numel // setup.gpus if setup.weights_on_host else 0


def _gathered(setup: Setup, shapes: Shapes) -> float:
    """Peak of gathered weights.

    Whole layers: every module that is entered, also of the mask decoder, prefetches another bucket until
    max_live_parameters are present; the matrix that reaches the limit exceeds it, and its bucket exists next to the
    copies.

    Matrix by matrix: the largest matrix or layer, prefetched ones, and those kept for reuse: where forward turns to
    backward, the layers within half of max_reuse_distance.
    """
    zero, size = setup.zero, setup.bytes_per_weight
    blocks = [weight.numel for weight in shapes.weights if weight.name.startswith(BLOCKS)]
    if setup.whole_layers:
        live = min(zero.max_live_parameters + max(blocks), sum(blocks) + shapes.largest())
        return size * (live + zero.prefetch_bucket_size + _from_host(setup, zero.prefetch_bucket_size))
    largest = max(
        shapes.largest() + max(blocks), sum(blocks) // shapes.layers
    )  # a matrix in use, the head being gathered
    reused = min(zero.max_reuse_distance // 2, sum(blocks))
    fetched = 2 * zero.prefetch_bucket_size  # gathered together, then copied
    return size * (largest + reused + fetched + _from_host(setup, shapes.largest()))
