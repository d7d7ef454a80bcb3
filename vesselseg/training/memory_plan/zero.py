"""What DeepSpeed 0.18 holds beside the model, in bytes: read in stage_1_and_2.py, stage3.py, partition_parameters.py.

T: elements that train, P: one process's part of them, b: bytes per weight (2 in bf16). Names of what is held are the
rows of the plan's table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from vesselseg.models.quantised import NF4_BYTES
from vesselseg.training.flat_parameters import LARGEST, worth_laying
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
    """Bytes on one GPU. build: weights while the model is made. always: while it trains, once the first optimizer step
    has made the moments. engine: at its start, in all. encoders: their weights, where stored features keep them away.
    backward: gradients while they arise. reduction: while they are shared out, where that is not then but afterwards.
    step: in the optimizer step.

    gathered: weights of ZeRO-3 that are whole for the moment. head: beside these and the masks, while the largest
    arrives; answers: instead of these, where it arrives without the masks. host: main memory of one process.
    """

    build: Rows
    always: Rows
    engine: Rows
    encoders: Rows
    backward: Rows
    step: Rows
    reduction: Rows = field(default_factory=dict)
    gathered: Rows = field(default_factory=dict)
    head: Rows = field(default_factory=dict)
    answers: Rows = field(default_factory=dict)
    host: Rows = field(default_factory=dict)


def zero_bytes(setup: Setup, shapes: Shapes) -> ZeroBytes:
    """By stage, 1 to 3."""
    return _stage_3(setup, shapes) if setup.stage == 3 else _stage_1_and_2(setup, shapes)


def resume_bytes(setup: Setup) -> int:
    """Of a trained element on disk: master and moments, and with an average that and the weight itself."""
    average = AVERAGE_BYTES + setup.bytes_per_weight if setup.schedule.ema else 0
    return MASTER_BYTES + MOMENT_BYTES + average


def partition(elements: int, processes: int) -> int:
    """One process's part."""
    aligned = math.ceil(elements / (ALIGNMENT * processes)) * ALIGNMENT * processes
    return aligned // processes


def frozen_bytes(setup: Setup, weights: Iterable[Weight]) -> float:
    """Frozen weights of a GPU that holds all of these."""
    sizes = (NF4_BYTES if setup.quantised and w.in_4_bits else setup.bytes_per_weight for w in weights)
    return sum(w.numel * size for w, size in zip(weights, sizes) if not w.trainable)


def leaves_for_host(setup: Setup, shapes: Shapes, weight: Weight) -> bool:
    """Whether it is the embedding table and waits in main memory."""
    return weight.is_embedding and setup.embedding_on_host and not shapes.text.tie_word_embeddings


def _stage_1_and_2(setup: Setup, shapes: Shapes) -> ZeroBytes:
    """DeepSpeed knows the large tensors of `flat_parameters`, whose gradients collect outside of it.

    Where more trains than is laid into them, each process collects its share, in main memory with the optimizer.
    """
    size, trains = setup.bytes_per_weight, shapes.trainable
    flat = worth_laying(trains)
    part = partition(trains, setup.gpus)
    largest, on_host = max(shapes.largest(trainable=True), min(LARGEST, trains) if flat else 0), setup.optimizer_on_host
    here = [weight for weight in shapes.weights if not leaves_for_host(setup, shapes, weight)]
    encoders = frozen_bytes(setup, [w for w in here if w.is_encoder]) if setup.store else 0.0
    frozen = frozen_bytes(setup, here)
    collected = trains if flat or setup.stage == 1 else 0 if on_host else part
    trained: Rows = {TRAINABLE: size * trains, GRADIENTS: size * collected}
    states: Rows = {} if on_host else {MASTERS: MASTER_BYTES * part, MOMENTS: MOMENT_BYTES * part}
    if setup.schedule.ema:
        states[AVERAGE] = AVERAGE_BYTES * trains
    # DeepSpeed copies the weights into a tensor of its own; then the masters, beside zeros of a dropped gradient.
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
    """At the end of an accumulation group: one large gradient after the other is copied, reduced and shared out.

    The bucket is there twice with overlap_comm, and once more, as a copy, where it spans two owners. A gradient larger
    than the bucket is reduced by itself. With the optimizer on the host, each passes through a buffer and is checked.
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
    """Checks and norm on one gradient after the other; then a flat copy, and that in float32."""
    checks = size * part + max(OVERFLOW_BYTES, NORM_BYTES) * largest_piece
    flattened = size * part + size * part + (MASTER_BYTES * part if size < MASTER_BYTES else 0)
    return max(checks, flattened)


def _offloaded_optimizer(setup: Setup, part: int, largest: int) -> Rows:
    """Pinned: masters, their gradients, weights on their way back, sums of gradients; moments are not pinned."""
    size = setup.bytes_per_weight
    pinned = [MASTER_BYTES * part, MASTER_BYTES * part, size * part, size * largest]
    if setup.schedule.accumulation > 1:
        pinned.append(size * part)
    # Before they are pinned, masters and returning weights exist once more.
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
        # A second copy of the masters while the first is made.
        engine={**weights, GATHERED: size * small, STEP: 0 if on_host else 2 * MASTER_BYTES * part},
        encoders={},  # shares are not moved
        # Gradients are copied to be scattered; one that exceeds the bucket is reduced by itself.
        backward={BUCKETS: bucket + (2 * size * largest if largest > zero.reduce_bucket_size else 0)},
        step={} if on_host else {STEP: _step(size, part, min(largest, part))},
        gathered={GATHERED: _gathered(setup, shapes)},
        **_arriving_head(setup, shapes),
        host=host,
    )


def _arriving_head(setup: Setup, shapes: Shapes) -> dict[str, Rows]:
    """The head is there twice until it is copied out of the buffer in which it came, beside its share from the host.

    Matrix by matrix, what is prefetched ends with the weight that fills the bucket, which is the head. Whole layers of
    the backward pass are fetched behind it: while it arrives, none is there.
    """
    size, largest = setup.bytes_per_weight, shapes.largest()
    if not setup.whole_layers:
        return {"head": {GATHERED: size * largest}}
    return {"answers": {GATHERED: size * (2 * largest + _from_host(setup, largest))}}


def _from_host(setup: Setup, numel: int) -> int:
    """This process's share of a weight, on its way to the others."""
    return numel // setup.gpus if setup.weights_on_host else 0


def _gathered(setup: Setup, shapes: Shapes) -> float:
    """Most weights that are whole at once.

    Whole layers: every module that is entered, of the mask decoder too, fetches another bucket ahead, until
    max_live_parameters are there; the matrix that reaches the limit exceeds it, and a bucket lies beside its copies.

    Matrix by matrix: the largest matrix or layer, prefetched ones, and those kept for reuse: at the turn from forward
    to backward, layers within half of max_reuse_distance of it.
    """
    zero, size = setup.zero, setup.bytes_per_weight
    blocks = [weight.numel for weight in shapes.weights if weight.name.startswith(BLOCKS)]
    if setup.whole_layers:
        live = min(zero.max_live_parameters + max(blocks), sum(blocks) + shapes.largest())
        return size * (live + zero.prefetch_bucket_size + _from_host(setup, zero.prefetch_bucket_size))
    largest = max(shapes.largest() + max(blocks), sum(blocks) // shapes.layers)  # a matrix at work, the head on its way
    reused = min(zero.max_reuse_distance // 2, sum(blocks))
    fetched = 2 * zero.prefetch_bucket_size  # gathered together, then copied apart
    return size * (largest + reused + fetched + _from_host(setup, shapes.largest()))
