"""Estimated time of an iteration on a named GPU, from arithmetic, bytes and kernel launches."""

from __future__ import annotations

from dataclasses import dataclass

from vesselseg.models.quantised import NF4_BYTES
from vesselseg.training.memory_plan.activations import head_flops
from vesselseg.training.memory_plan.cards import Card
from vesselseg.training.memory_plan.images import Images
from vesselseg.training.memory_plan.setup import Setup
from vesselseg.training.memory_plan.shapes import BLOCKS, Shapes
from vesselseg.training.plan import TrainPlan

# All constants are calibrated on H200s (docs/results.md). Share of the GPU's peak throughput that large products reach.
EFFICIENCY = 0.65
# Of the vessel head's convolutions, which have few channels and many pixels. Assumed: not measured yet.
HEAD_EFFICIENCY = 0.15
# Seconds for which the GPU waits for the kernel launches of one decoder layer's forward pass, fused and not fused.
FUSED_LAUNCH, PLAIN_LAUNCH = 0.0010, 0.0020
# Recomputed forward and backward have this many times as many launches.
LAUNCHES_PER_PASS = 4
# Mask decoder, losses, packing, engine step: launches that do not depend on the language model.
OTHER_LAUNCHES = 0.02
# One gather of ZeRO-3, of a matrix or a whole layer: bookkeeping, the collective, release.
GATHER = 0.0004
# DeepSpeed's CPU Adam: bytes read and written per element, and bytes per second and process: 88e9 with 16 cores of an
# H200's host, less if processes share fewer memory channels.
CPU_ADAM_BYTES, CPU_ADAM_RATE = 28, 50e9
SAM2_LARGE_FLOPS = 1.6e12  # forward pass of the image encoder at 1024, for its 212.7 M parameters
SAM2_LARGE_ENCODER = 212_703_280


@dataclass(frozen=True)
class Time:
    """Seconds of one iteration by part."""

    card: Card
    flops: float  # of one image
    arithmetic: float  # seconds, as all below
    memory: float
    launches: float
    communication: float
    optimizer: float
    images_per_iteration: int  # of all GPUs
    iterations: int  # of the whole run

    @property
    def iteration(self) -> float:
        """Arithmetic and memory traffic overlap, the rest adds up.

        Launches overlap with long kernels and not with short ones; adding them to arithmetic fits measurements best.
        """
        return max(self.arithmetic, self.memory) + self.launches + self.communication + self.optimizer

    @property
    def images_per_second(self) -> float:
        """Images per second of all GPUs."""
        return self.images_per_iteration / self.iteration

    @property
    def hours(self) -> float:
        """Hours of the whole run, without validation and loading."""
        return self.iteration * self.iterations / 3600


def estimate_time(setup: Setup, shapes: Shapes, images: Images, plan: TrainPlan, card: Card) -> Time:
    """An estimate, correct to about a factor of two."""
    batch = setup.schedule.micro_batch
    flops, head = _flops(setup, shapes, images), _head_flops(setup, shapes, images)
    return Time(
        card=card,
        flops=flops + head,
        arithmetic=(flops / EFFICIENCY + head / HEAD_EFFICIENCY) * batch / (card.tflops * 1e12),
        memory=_weight_traffic(setup, shapes) / (card.memory_gbs * 1e9),
        launches=_launches(setup, shapes),
        communication=_communication(setup, shapes, card),
        optimizer=_optimizer(setup, shapes, card) / setup.schedule.accumulation,
        images_per_iteration=plan.images_per_iteration,
        iterations=plan.iterations,
    )


def _passes(setup: Setup, shapes: Shapes) -> float:
    """Matrix products with frozen weights per forward pass: forward, recomputation, gradient of the input."""
    return 2 + setup.recomputed(shapes.layers) / shapes.layers


def _flops(setup: Setup, shapes: Shapes, images: Images) -> float:
    text = shapes.text
    blocks = sum(w.numel for w in shapes.weights if w.name.startswith(BLOCKS) and w.is_matrix)
    adapted = sum(w.numel for w in shapes.weights if w.name.startswith(BLOCKS) and w.trainable)
    passes = _passes(setup, shapes)
    scores = 2 * shapes.layers * images.tokens**2 * int(text.hidden_size)  # causal: half of 4 tokens^2 hidden
    head = 2 * 2 * images.answer_tokens * int(text.hidden_size) * int(text.vocab_size)
    flops = 2 * images.tokens * (blocks * passes + adapted) + scores * (passes + 1) + head
    if setup.store is None:
        flops += _encoder_flops(shapes, images)
    return flops


def _head_flops(setup: Setup, shapes: Shapes, images: Images) -> float:
    """Of the vessel head: forward, backward and, where it is computed again, forward once more."""
    head = shapes.model.grounding.vessel_head
    if head is None:
        return 0.0
    picture, each = head_flops(shapes)
    passes = 3 if setup.stage == 3 or head.options.at_once is None else 4
    return passes * (picture + images.objects * each)


def _encoder_flops(shapes: Shapes, images: Images) -> float:
    """Forward only if frozen, forward and backward otherwise."""
    config = shapes.model.config
    vision = sum(w.numel for w in shapes.weights if w.name.startswith("vision_model.") and w.is_matrix)
    patches = (config.force_image_size // int(config.vision_config.get("patch_size", 14))) ** 2
    sam2 = sum(w.numel for w in shapes.weights if w.name.startswith("grounding.sam2.image_encoder."))
    side = shapes.model.grounding.image_size / 1024
    once = 2 * vision * patches * images.tiles + SAM2_LARGE_FLOPS * sam2 / SAM2_LARGE_ENCODER * side**2
    return once * (1 if shapes.encoders_frozen else 3)


def _weight_traffic(setup: Setup, shapes: Shapes) -> float:
    """Bytes of the blocks, read once per pass; 4-bit weights are also written and read as bf16."""
    blocks = sum(w.numel for w in shapes.weights if w.name.startswith(BLOCKS))
    size = NF4_BYTES + 2 * setup.bytes_per_weight if setup.quantised else setup.bytes_per_weight
    return blocks * size * _passes(setup, shapes)


def _launches(setup: Setup, shapes: Shapes) -> float:
    again = setup.recomputed(shapes.layers) / shapes.layers
    layer = (FUSED_LAUNCH if setup.fused else PLAIN_LAUNCH) * (LAUNCHES_PER_PASS - 1 + again)
    gathers = GATHER * _passes(setup, shapes) * _gathers(setup, shapes) if setup.stage == 3 else 0
    return shapes.layers * layer + OTHER_LAUNCHES + gathers


def _gathers(setup: Setup, shapes: Shapes) -> int:
    """Number of gathers in one pass: matrices, or decoder layers and the matrices outside of them."""
    large = [w for w in shapes.weights if w.numel > setup.zero.param_persistence_threshold]
    if not setup.whole_layers:
        return len(large)
    outside = [w for w in large if not w.name.startswith(BLOCKS) and not (setup.store and w.is_encoder)]
    return shapes.layers + len(outside)


def _communication(setup: Setup, shapes: Shapes, card: Card) -> float:
    """Gradients are reduced in every iteration; ZeRO-3 gathers all weights in every pass."""
    size, others = setup.bytes_per_weight, (setup.gpus - 1) / setup.gpus
    peers, host = card.peer_gbs * 1e9, card.host_gbs * 1e9
    seconds = 2 * size * shapes.trainable * others / peers
    if setup.stage == 3:
        whole = size * sum(weight.numel for weight in shapes.weights)
        seconds += _passes(setup, shapes) * whole * others / peers
        if setup.weights_on_host:
            seconds += _passes(setup, shapes) * whole / setup.gpus / host
    if setup.activations_on_host:
        seconds += 2 * size * setup.recomputed(shapes.layers) * int(shapes.text.hidden_size) / host
    return seconds


def _optimizer(setup: Setup, shapes: Shapes, card: Card) -> float:
    """One step: states read and written, weights gathered; on the CPU also copies of gradients and weights."""
    part, size = shapes.trainable / setup.gpus, setup.bytes_per_weight
    seconds = size * shapes.trainable * (setup.gpus - 1) / setup.gpus / (card.peer_gbs * 1e9)
    if setup.optimizer_on_host:
        return seconds + part * (CPU_ADAM_BYTES / CPU_ADAM_RATE + 2 * size / (card.host_gbs * 1e9))
    return seconds + part * CPU_ADAM_BYTES / (card.memory_gbs * 1e9)
