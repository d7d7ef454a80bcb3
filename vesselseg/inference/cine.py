"""A cine run -> one Prediction per frame: every frame on its own, or from SAM2's memory of keyframes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vesselseg.errors import UserError
from vesselseg.imaging.rgb import as_rgb
from vesselseg.inference.predictor import Batch, ModelInputs, Prediction, Predictor, check_threshold
from vesselseg.inference.threads import one_ahead
from vesselseg.models.sam2_memory import MaskMemory, has_memory, memory_trained, single

MODES = ("frames", "memory")
EVERY = 8  # so many frames one is a keyframe, where nothing else is asked for
Keyframes = int | Sequence[int] | None


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
    mode: `frames`: each frame is an image of its own; with flips: see `Predictor.predict`. `memory`: the language model
    prompts the keyframes, whose masks SAM2's memory carries to the frames after them; all have one size then.
    keyframes, of `memory`: every so many frames, or their numbers from 0. The first frame is always one.
    Raises UserError for arguments that do not go together, and for a model whose memory was never trained.
    """
    problems = mode_problems(mode, flips, keyframes) + _problems(frames, phrases, batch)
    prompted: frozenset[int] = frozenset()
    if mode == "memory":
        prompted, refused = _chosen(usual_keyframes(keyframes), len(frames))
        problems += refused + _memory_problems(predictor)
    if problems:
        raise UserError("\n".join(problems))
    used = predictor.threshold if threshold is None else check_threshold(threshold)
    if mode == "frames":
        return _each_frame(predictor, frames, phrases, used, batch, flips)
    return _from_memory(predictor, frames, phrases, prompted, used, batch)


def usual_keyframes(keyframes: Keyframes) -> int | Sequence[int]:
    """What was asked for, or the usual ones."""
    return EVERY if keyframes is None else keyframes


def mode_problems(mode: str, flips: bool, keyframes: Keyframes) -> list[str]:
    """What does not go together, whatever the clip and the model."""
    if mode not in MODES:
        return [f"cine: the mode is {mode!r}; expected {' or '.join(MODES)}"]
    if mode == "memory" and flips:
        return ["cine: memory follows a run as it lies; leave the flips away (--tta), or take mode 'frames'"]
    if mode == "frames" and keyframes is not None:
        return ["keyframes: only mode 'memory' has them; add --cine memory, or leave --keyframes away"]
    return []


def _problems(frames: Sequence[Image.Image], phrases: Sequence[str], batch: int) -> list[str]:
    problems = []
    if isinstance(phrases, str) or not phrases:
        problems.append(f"phrases is {phrases!r}; expected a list of at least one phrase, e.g. ['blood vessel']")
    if not len(frames):
        problems.append("the cine run has no frames")
    if batch < 1:
        problems.append(f"the batch is {batch} frames; expected 1 or more")
    return problems


def _chosen(keyframes: int | Sequence[int], frames: int) -> tuple[frozenset[int], list[str]]:
    """The keyframes, and what is wrong with the wish."""
    if isinstance(keyframes, int):
        if keyframes < 1:
            return frozenset(), [f"keyframes is {keyframes}; expected every how many frames, 1 or more"]
        return frozenset(range(0, frames, keyframes)), []
    outside = [number for number in keyframes if not 0 <= number < frames]
    if outside:
        named = ", ".join(map(str, outside))
        return frozenset(), [f"keyframes {named}: the cine run has frames 0 to {frames - 1}"]
    return frozenset({0, *keyframes}), []


def _memory_problems(predictor: Predictor) -> list[str]:
    if memory_trained(predictor.grounding):
        return []
    if not has_memory(predictor.grounding):
        return [
            "this model keeps only what single images need of SAM2, and no memory; take mode 'frames' (--cine frames)"
        ]
    return [
        "this model's SAM2 has a memory that was never trained (its weights are as drawn at random), so keyframes "
        "would tell the frames after them nothing; take mode 'frames' (--cine frames), or a model made "
        "from pretrained SAM2 weights"
    ]


def _each_frame(
    predictor: Predictor,
    frames: Sequence[Image.Image],
    phrases: Sequence[str],
    threshold: float,
    batch: int,
    flips: bool,
) -> Iterator[Prediction]:
    questions = [predictor.question(phrase) for phrase in phrases]

    def batches() -> Iterator[Batch]:
        for start in range(0, len(frames), batch):
            together = [frames[number] for number in range(start, min(start + batch, len(frames)))]
            yield together, [questions] * len(together)

    for found in predictor.stream(batches(), flips):
        for probabilities in found:
            yield Prediction.cut(probabilities, phrases, threshold)


def _from_memory(
    predictor: Predictor,
    frames: Sequence[Image.Image],
    phrases: Sequence[str],
    prompted: frozenset[int],
    threshold: float,
    batch: int,
) -> Iterator[Prediction]:
    questions = [predictor.question(phrase) for phrase in phrases]
    memory = MaskMemory(predictor.grounding, len(frames))
    size: tuple[int, int] | None = None

    def prepare(numbers: range) -> _Views:
        nonlocal size
        together = [as_rgb(frames[number]) for number in numbers]
        size = size or together[0].size
        _check_sizes(together, size, numbers[0])
        return _views(predictor, together, questions, [place for place, at in enumerate(numbers) if at in prompted])

    starts = range(0, len(frames), batch)
    for views in one_ahead(prepare, [range(start, min(start + batch, len(frames))) for start in starts]):
        for probabilities in _remembered(predictor, memory, views):
            yield Prediction.cut(probabilities, phrases, threshold)


def _check_sizes(frames: Sequence[Image.Image], size: tuple[int, int], first: int) -> None:
    for place, frame in enumerate(frames):
        if frame.size != size:
            raise UserError(
                f"frame {first + place} has {frame.width} x {frame.height} pixels, frame 0 has {size[0]} x {size[1]}; "
                "memory follows one scene, so all frames must have one size; take mode 'frames' (--cine frames)"
            )


@dataclass(frozen=True)
class _Views:
    """What the model gets of the next frames. frames: their square views; asked: which of them are keyframes, whose
    views for the language model are in keyframes. size: (width, height) of all.
    """

    frames: ModelInputs
    asked: Sequence[int]
    keyframes: ModelInputs | None
    size: tuple[int, int]


def _views(
    predictor: Predictor, frames: Sequence[Image.Image], questions: Sequence[str], asked: Sequence[int]
) -> _Views:
    keyframes = predictor.prepare([frames[place] for place in asked], [questions] * len(asked)) if asked else None
    return _Views(
        ModelInputs((predictor.squares(frames),), (0,) * len(frames), [], []), asked, keyframes, frames[0].size
    )


# Not inference_mode: SAM2 keeps a table from the first call, which training could not use afterwards.
@torch.no_grad()
def _remembered(predictor: Predictor, memory: MaskMemory, views: _Views) -> list[np.ndarray]:
    """Probabilities (phrases, height, width) of the next frames."""
    prompts = dict[int, Tensor]()
    with predictor.predicting():
        features = predictor.encode(views.frames)
        if views.keyframes is not None:
            of_asked = features.select(torch.tensor(views.asked, device=features.embedding.device))
            found = predictor.prompts(views.keyframes, of_asked).split(views.keyframes.objects)
            prompts = dict(zip(views.asked, found))
        count = len(views.frames.objects)
        logits = [memory.step(single(features, place), prompts.get(place)) for place in range(count)]
    return [predictor.at_size(of_frame, views.size) for of_frame in logits]
