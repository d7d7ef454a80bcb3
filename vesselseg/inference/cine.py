"""A cine run -> one Prediction per frame: each frame independently, or propagated from keyframes by SAM2's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vesselseg.errors import UserError
from vesselseg.imaging.rgb import to_rgb
from vesselseg.inference.options import Keyframes, mode_problems, resolve_keyframes
from vesselseg.inference.predictor import ModelInputs, Prediction, Predictor, QuestionBatch, check_threshold
from vesselseg.inference.threads import prefetch
from vesselseg.models.sam2_memory import MaskMemory, has_memory, memory_trained, single


def segment_cine(
    predictor: Predictor,
    frames: Sequence[Image.Image],
    phrases: Sequence[str],
    mode: str = "frames",
    keyframes: Keyframes = None,
    threshold: float | None = None,
    batch: int = 4,
    flips: bool = False,
) -> Iterator[Prediction]:
    """One Prediction per frame, in order, probabilities at the frame's own size.

    Frames are read once, in order, `batch` at a time, by a thread that is one batch ahead of the model.
    mode: `frames` segments each frame as a separate image; flips: see `Predictor.predict`. `memory` prompts SAM2 on the
    keyframes only, and SAM2's memory propagates their masks to the following frames, which must have one size.
    keyframes, for `memory`: an interval in frames, or frame numbers from 0. The first frame is always a keyframe.
    Raises UserError for incompatible arguments, and for a model whose memory was never trained.
    """
    problems = mode_problems(mode, flips, keyframes) + _problems(frames, phrases, batch)
    keyframe_numbers: frozenset[int] = frozenset()
    if mode == "memory":
        keyframe_numbers, invalid = _keyframe_numbers(resolve_keyframes(keyframes), len(frames))
        problems += invalid + _memory_problems(predictor)
    if problems:
        raise UserError("\n".join(problems))
    threshold = predictor.threshold if threshold is None else check_threshold(threshold)
    if mode == "frames":
        return _segment_frames(predictor, frames, phrases, threshold, batch, flips)
    return _propagate(predictor, frames, phrases, keyframe_numbers, threshold, batch)


def _problems(frames: Sequence[Image.Image], phrases: Sequence[str], batch: int) -> list[str]:
    problems = []
    if isinstance(phrases, str) or not phrases:
        problems.append(f"phrases is {phrases!r}; expected a list of at least one phrase, e.g. ['blood vessel']")
    if not len(frames):
        problems.append("the cine run has no frames")
    if batch < 1:
        problems.append(f"the batch is {batch} frames; expected 1 or more")
    return problems


def _keyframe_numbers(keyframes: int | Sequence[int], frames: int) -> tuple[frozenset[int], list[str]]:
    """(frame numbers of the keyframes, problems)."""
    if isinstance(keyframes, int):
        if keyframes < 1:
            return frozenset(), [f"keyframes is {keyframes}; expected an interval of 1 frame or more"]
        return frozenset(range(0, frames, keyframes)), []
    outside = [number for number in keyframes if not 0 <= number < frames]
    if outside:
        named = ", ".join(map(str, outside))
        return frozenset(), [f"keyframes {named}: the cine run has frames 0 to {frames - 1}"]
    return frozenset({0, *keyframes}), []


def _memory_problems(predictor: Predictor) -> list[str]:
    if not predictor.grounding.uses_sam2:
        return [
            "this model's masks are drawn without SAM2 (vessel_head.sam2=False), so its memory has no part in them; "
            "take mode 'frames' (--cine frames)"
        ]
    if memory_trained(predictor.grounding):
        return []
    if not has_memory(predictor.grounding):
        return ["this model has SAM2's image parts only and no memory; use mode 'frames' (--cine frames)"]
    return [
        "the memory of this model's SAM2 was never trained (its weights are randomly initialised), so it cannot "
        "propagate masks; use mode 'frames' (--cine frames), or a model built from pretrained SAM2 weights"
    ]


def _segment_frames(
    predictor: Predictor,
    frames: Sequence[Image.Image],
    phrases: Sequence[str],
    threshold: float,
    batch: int,
    flips: bool,
) -> Iterator[Prediction]:
    questions = [predictor.format_question(phrase) for phrase in phrases]

    def batches() -> Iterator[QuestionBatch]:
        for start in range(0, len(frames), batch):
            images = [frames[number] for number in range(start, min(start + batch, len(frames)))]
            yield images, [questions] * len(images)

    for of_batch in predictor.stream(batches(), flips):
        for probabilities in of_batch:  # (phrases, height, width)
            yield Prediction.from_probabilities(probabilities, phrases, threshold)


def _propagate(
    predictor: Predictor,
    frames: Sequence[Image.Image],
    phrases: Sequence[str],
    keyframe_numbers: frozenset[int],
    threshold: float,
    batch: int,
) -> Iterator[Prediction]:
    questions = [predictor.format_question(phrase) for phrase in phrases]
    memory = MaskMemory(predictor.grounding, len(frames))
    size: tuple[int, int] | None = None

    def preprocess(numbers: range) -> _FrameBatch:
        nonlocal size
        images = [to_rgb(frames[number]) for number in numbers]
        size = size or images[0].size
        _check_sizes(images, size, numbers[0])
        positions = [position for position, number in enumerate(numbers) if number in keyframe_numbers]
        return _frame_batch(predictor, images, questions, positions)

    starts = range(0, len(frames), batch)
    for frame_batch in prefetch(preprocess, [range(start, min(start + batch, len(frames))) for start in starts]):
        for probabilities in _step(predictor, memory, frame_batch):
            yield Prediction.from_probabilities(probabilities, phrases, threshold)


def _check_sizes(frames: Sequence[Image.Image], size: tuple[int, int], first: int) -> None:
    for position, frame in enumerate(frames):
        if frame.size != size:
            raise UserError(
                f"frame {first + position} has {frame.width} x {frame.height} pixels, "
                f"frame 0 has {size[0]} x {size[1]}; "
                "with memory all frames must have one size; use mode 'frames' (--cine frames)"
            )


@dataclass(frozen=True)
class _FrameBatch:
    """Model inputs of consecutive frames."""

    frames: ModelInputs  # SAM2's views of all frames, without objects
    positions: Sequence[int]  # of the keyframes among the frames
    keyframes: ModelInputs | None  # with the language model's views; None without keyframes
    size: tuple[int, int]  # (width, height) of every frame


def _frame_batch(
    predictor: Predictor, frames: Sequence[Image.Image], questions: Sequence[str], positions: Sequence[int]
) -> _FrameBatch:
    """positions: of the keyframes among the frames."""
    keyframes = None
    if positions:
        keyframes = predictor.build_inputs([frames[index] for index in positions], [questions] * len(positions))
    views = ModelInputs((predictor.square_views(frames),), (0,) * len(frames), [], [])
    return _FrameBatch(views, positions, keyframes, frames[0].size)


# no_grad in place of inference_mode: SAM2 caches a table in its first call, and autograd refuses inference tensors.
@torch.no_grad()
def _step(predictor: Predictor, memory: MaskMemory, batch: _FrameBatch) -> list[np.ndarray]:
    """Probabilities (phrases, height, width) of the next frames; advances the memory."""
    prompts = dict[int, Tensor]()  # position of a keyframe -> (phrases, 256)
    with predictor.eval_mode():
        features = predictor.encode(batch.frames)
        if batch.keyframes is not None:
            selected = features.select(torch.tensor(batch.positions, device=features.embedding.device))
            prompts = dict(
                zip(batch.positions, predictor.prompts(batch.keyframes, selected).split(batch.keyframes.objects))
            )
        count = len(batch.frames.objects)
        # Per frame (phrases, h, w).
        logits = [memory.step(single(features, position), prompts.get(position)) for position in range(count)]
    return [predictor.to_probabilities(of_frame, batch.size) for of_frame in logits]
