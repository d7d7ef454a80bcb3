from __future__ import annotations

import copy
from typing import Any
from unittest.mock import patch

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from tests.cines import shake_memory
from tests.tiny import SAM2
from vesselseg.models.sam2_grounding import ImageFeatures, SAM2Grounding
from vesselseg.models.sam2_memory import FRAMES_WITH_POINTERS, KEYFRAMES_KEPT, MaskMemory, memory_trained, single

FRAMES = 20  # more than are remembered
OBJECTS = 2
SIDE = 128
assert SAM2["image_size"] == SIDE


def grounding_of(seed: int = 0, present: bool = True, **changes: Any) -> SAM2Grounding:
    torch.manual_seed(seed)
    grounding = SAM2Grounding({**SAM2, **changes}).eval().requires_grad_(False)
    shake_memory(grounding, present=present)
    return grounding


@pytest.fixture(scope="module")
def views() -> Tensor:
    """(frames, 3, side, side): a smooth picture that moves by two pixels a frame, and noise."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 3, 16, 32, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, size=(SIDE, 2 * SIDE), mode="bicubic")
    moving = torch.cat([wide[..., 2 * number : 2 * number + SIDE] for number in range(FRAMES)])
    return moving + 0.1 * torch.randn(moving.shape, generator=generator)


def prompts_of(seed: int = 2) -> Tensor:
    return torch.randn(OBJECTS, 256, generator=torch.Generator().manual_seed(seed))


def frames_of(grounding: SAM2Grounding, views: Tensor) -> list[ImageFeatures]:
    features = grounding.encode(views)
    return [single(features, number) for number in range(len(views))]


def follow(grounding: SAM2Grounding, views: Tensor, keyframes: tuple[int, ...] = (0,)) -> list[Tensor]:
    memory = MaskMemory(grounding, len(views))
    prompts = prompts_of()
    return [
        memory.step(features, prompts if number in keyframes else None)
        for number, features in enumerate(frames_of(grounding, views))
    ]


def tracked_by_package(grounding: SAM2Grounding, views: Tensor, masks: Tensor) -> tuple[list[Tensor], list[Any]]:
    """Logits (objects, side / 4, side / 4) per frame from the package's own video predictor, and what it remembers of
    the first frame, where it was given masks (objects, side, side); object by object."""
    video = copy.deepcopy(grounding.sam2)
    video.__class__ = SAM2VideoPredictor
    video.fill_hole_area, video.non_overlap_masks = 0, False
    video.clear_non_cond_mem_around_input = video.add_all_frames_to_correct_as_cond = False
    with patch("sam2.sam2_video_predictor.load_video_frames", return_value=(views, SIDE // 4, SIDE // 4)):
        state = video.init_state("none")
    for number, mask in enumerate(masks):
        video.add_new_mask(state, 0, number, mask)
    found = [logits.squeeze(1).clone() for _, _, logits in video.propagate_in_video(state)]
    first = [state["output_dict_per_obj"][number]["cond_frame_outputs"][0] for number in range(len(masks))]
    return found, first


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_frames_after_a_keyframe_as_by_the_packages_video_predictor(version: str, views: Tensor) -> None:
    grounding = grounding_of(version=version)
    masks = torch.zeros(OBJECTS, SIDE, SIDE, dtype=torch.bool)
    masks[0, 20:90, 30:60], masks[1, 70:110, 10:120] = True, True
    theirs, first = tracked_by_package(grounding, views, masks)

    # The package's video predictor keeps memory in bfloat16.
    exact = grounding.sam2._encode_new_memory
    grounding.sam2._encode_new_memory = lambda **given: (exact(**given)[0].bfloat16(), exact(**given)[1])
    memory = MaskMemory(grounding, FRAMES)
    frames = frames_of(grounding, views)
    memory.step(frames[0], prompts_of())
    joined = {name: torch.cat([kept[name] for kept in first]).clone() for name in ("maskmem_features", "obj_ptr")}
    positions = [torch.cat([kept["maskmem_pos_enc"][-1] for kept in first])]
    memory.outputs["cond_frame_outputs"][0] = {**joined, "maskmem_pos_enc": positions}
    ours = [memory.step(features) for features in frames[1:]]

    assert len(ours) == len(theirs) - 1
    for expected, found in zip(theirs[1:], ours):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float((ours[0] - ours[-1]).abs().max()) > 0.01  # the frames do differ


def test_a_keyframe_is_decoded_as_an_image_of_its_own(views: Tensor) -> None:
    grounding = grounding_of()
    found = follow(grounding, views[:6], keyframes=(0, 1, 4))
    of_object = torch.zeros(OBJECTS, dtype=torch.int64)
    for number in (0, 1, 4):
        alone = grounding.decode(grounding.encode(views[number : number + 1]), prompts_of(), of_object)
        torch.testing.assert_close(found[number], alone, atol=1e-5, rtol=1e-5)


def test_later_keyframes_change_the_frames_after_them_and_none_before(views: Tensor) -> None:
    grounding = grounding_of()
    once, twice = follow(grounding, views[:8]), follow(grounding, views[:8], keyframes=(0, 5))
    for frame in range(5):
        assert torch.equal(once[frame], twice[frame])
    for frame in (5, 6, 7):
        assert float((once[frame] - twice[frame]).abs().max()) > 1e-3


def test_objects_do_not_see_each_other(views: Tensor) -> None:
    grounding = grounding_of()
    together = follow(grounding, views[:4])
    frames = frames_of(grounding, views[:4])
    for number in range(OBJECTS):
        memory = MaskMemory(grounding, 4)
        alone = [memory.step(f, prompts_of()[number : number + 1] if n == 0 else None) for n, f in enumerate(frames)]
        for frame in range(4):
            torch.testing.assert_close(alone[frame][0], together[frame][number], atol=1e-4, rtol=1e-4)


def test_runs_side_by_side_as_one_after_the_other(views: Tensor) -> None:
    grounding = grounding_of()
    runs = [views[:5], views[6:11].flip(-1)]
    encoded = [grounding.encode(run) for run in runs]
    memory = MaskMemory(grounding, 5)
    together = []
    for number in range(5):
        levels = [
            torch.cat([getattr(run, name)[number : number + 1] for run in encoded])
            for name in ("embedding", "stride_8", "stride_4")
        ]
        together.append(memory.step(ImageFeatures(*levels), None if number else prompts_of()))
    for place, run in enumerate(encoded):
        memory = MaskMemory(grounding, 5)
        own = prompts_of()[place : place + 1]
        for number in range(5):
            alone = memory.step(single(run, number), None if number else own)[0]
            torch.testing.assert_close(alone, together[number][place], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("present", [True, False])
def test_the_object_score_blanks_no_mask_and_decides_the_pointer(present: bool, views: Tensor) -> None:
    grounding = grounding_of(present=present)
    memory = MaskMemory(grounding, 3)
    frames = frames_of(grounding, views[:3])
    found = [memory.step(features, None if n else prompts_of()) for n, features in enumerate(frames)]
    assert all(float(logits.min()) > -500 for logits in found)
    missing = grounding.sam2.no_obj_ptr.expand(OBJECTS, -1)
    pointers = [kept["obj_ptr"] for outputs in memory.outputs.values() for kept in outputs.values()]
    assert len(pointers) == 3
    assert all(torch.equal(pointer, missing) != present for pointer in pointers)


VESSEL_HEAD: dict[str, Any] = {"channels": [8, 8, 8, 8, 8], "object_channels": [4, 4]}


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({"fine_masks": "features"}, SIDE // 2),
        ({"fine_masks": "pixels"}, SIDE // 2),
        ({"vessel_head": VESSEL_HEAD}, SIDE),
        ({"vessel_head": {**VESSEL_HEAD, "side": SIDE // 2}}, SIDE // 2),
    ],
    ids=str,
)
def test_finer_masks_are_followed_at_their_own_size(changes: dict[str, Any], side: int, views: Tensor) -> None:
    grounding = grounding_of(**changes)
    found = follow(grounding, views[:3])
    assert [logits.shape for logits in found] == [(OBJECTS, side, side)] * 3
    assert float((found[1] - found[2]).abs().max()) > 0


def test_the_vessel_head_reads_each_frame_once_and_as_it_has_learnt_to(views: Tensor) -> None:
    """Not what memory makes of its features for each object; side by side, every run reads a frame of its own."""
    grounding = grounding_of(vessel_head=VESSEL_HEAD)
    seen: list[tuple[Tensor, ...]] = []
    grounding.vessel_head.pyramid.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0], *inputs[1])))
    frames = frames_of(grounding, views[:2])
    follow(grounding, views[:2])
    for frame, (picture, _, _, embedding) in zip(frames, seen):
        torch.testing.assert_close(picture, frame.view)
        torch.testing.assert_close(embedding, frame.embedding)
    memory = MaskMemory(grounding, 1)
    memory.step(grounding.encode(views[:2]), prompts_of())
    torch.testing.assert_close(seen[-1][0], views[:2])


def remembered(memory: MaskMemory) -> int:
    kept = [out for outputs in memory.outputs.values() for out in outputs.values()]
    tensors = [value for out in kept for value in (out["maskmem_features"], out["obj_ptr"]) if value is not None]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("every", [3, FRAMES])
def test_what_is_remembered_does_not_grow(every: int, views: Tensor) -> None:
    grounding = grounding_of()
    memory = MaskMemory(grounding, 3 * FRAMES)
    sizes = []
    frames = frames_of(grounding, views)
    for number in range(3 * FRAMES):
        memory.step(frames[number % FRAMES], None if number % every else prompts_of())
        sizes.append(remembered(memory))
    assert max(sizes[FRAMES:]) == max(sizes[2 * FRAMES :]) > 0
    keyframes, others = memory.outputs["cond_frame_outputs"], memory.outputs["non_cond_frame_outputs"]
    assert len(keyframes) == KEYFRAMES_KEPT and len(others) <= FRAMES_WITH_POINTERS
    spatial = [kept for kept in others.values() if kept["maskmem_features"] is not None]
    assert len(spatial) <= grounding.sam2.num_maskmem - 1


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_bfloat16_is_followed_too(version: str, views: Tensor) -> None:
    grounding = grounding_of(version=version)
    exact = follow(grounding, views[:4])
    half = SAM2Grounding({**SAM2, "version": version}).eval().requires_grad_(False)
    half.load_state_dict(grounding.state_dict())
    half = half.bfloat16()
    half.sam2.sam_prompt_encoder.pe_layer.float()
    memory = MaskMemory(half, 4)
    frames = frames_of(half, views[:4].bfloat16())
    found = [memory.step(f, prompts_of().bfloat16() if n == 0 else None) for n, f in enumerate(frames)]
    for expected, logits in zip(exact, found):
        assert logits.dtype == torch.bfloat16
        assert float(torch.nn.functional.cosine_similarity(expected.flatten(), logits.float().flatten(), 0)) > 0.99


def test_a_run_must_begin_with_prompts_and_keep_their_number(views: Tensor) -> None:
    grounding = grounding_of()
    frames = frames_of(grounding, views[:2])
    with pytest.raises(ValueError, match="first frame of a cine run needs prompts"):
        MaskMemory(grounding, 2).step(frames[0])
    memory = MaskMemory(grounding, 2)
    memory.step(frames[0], prompts_of())
    with pytest.raises(ValueError, match="1 prompts on frame 1, 2 on the keyframe before"):
        memory.step(frames[1], prompts_of()[:1])


def test_whether_memory_was_trained() -> None:
    grounding = SAM2Grounding(SAM2)
    assert not memory_trained(grounding)
    assert not memory_trained(grounding.bfloat16())
    shake_memory(grounding)
    assert memory_trained(grounding)
