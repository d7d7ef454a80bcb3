"""A synthetic cine run: reproducible, masks at dark vessels, filling and emptying from the catheter on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command_line import call_command
from vesselseg.errors import UserError
from vesselseg.synthetic.cine import Cine, draw_cine, write_cine

FRAMES, SIDE = 40, 160


@pytest.fixture(scope="module")
def cine() -> Cine:
    return draw_cine(FRAMES, SIDE, seed=3)


def test_sizes_and_types(cine: Cine) -> None:
    assert cine.frames.shape == cine.masks.shape == (FRAMES, SIDE, SIDE)
    assert cine.frames.dtype == np.uint8 and cine.masks.dtype == bool


def test_same_seed_same_run(cine: Cine) -> None:
    again, other = draw_cine(FRAMES, SIDE, seed=3), draw_cine(FRAMES, SIDE, seed=4)
    assert np.array_equal(again.frames, cine.frames) and np.array_equal(again.masks, cine.masks)
    assert not np.array_equal(other.masks, cine.masks)


def test_agent_fills_the_tree_and_leaves_it(cine: Cine) -> None:
    share = cine.masks.mean(axis=(1, 2))
    assert share[0] == 0
    assert share[5] < share[8] < share[14]  # the front moves along the tree
    assert 0.01 < share[FRAMES // 2] < 0.12
    assert share[-1] < 0.1 * share[FRAMES // 2]


def test_the_near_end_fills_and_empties_first(cine: Cine) -> None:
    places = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), axis=-1)
    begun = int(cine.masks.any(axis=(1, 2)).argmax())
    root = places[cine.masks[begun]].mean(axis=0)

    def distance(frame: int) -> float:
        """Mean distance of a frame's vessels from where the first ones were seen, in pixels."""
        return float(np.linalg.norm(places[cine.masks[frame]] - root, axis=1).mean())

    assert distance(begun + 3) < 0.7 * distance(FRAMES // 2) < 0.7 * distance(33)


@pytest.mark.parametrize("seed", range(3))
def test_vessels_are_darker_than_their_surroundings(seed: int) -> None:
    run = draw_cine(12, SIDE, seed)
    for frame, mask in zip(run.frames[5:8].astype(float), run.masks[5:8]):
        near = np.zeros_like(mask)
        for shift in (-7, 7):
            near |= np.roll(mask, shift, 0) | np.roll(mask, shift, 1)
        assert frame[mask].mean() < frame[near & ~mask].mean() - 8


def test_the_tree_moves_and_the_noise_is_new_in_every_frame(cine: Cine) -> None:
    full = cine.masks[14:22]
    steps = [1 - 2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairwise(full)]
    assert 0.02 < np.mean(steps) < 0.4
    still = ~cine.masks[16:18].any(axis=0)
    difference = (cine.frames[16].astype(float) - cine.frames[17])[still]
    assert 2 < difference.std() < 30


@pytest.mark.parametrize(("frames", "size"), [(0, 128), (3, 32)])
def test_invalid_runs(frames: int, size: int) -> None:
    with pytest.raises(UserError, match="at least 1 frame and a size of at least 64"):
        draw_cine(frames, size)


def test_files(tmp_path: Path) -> None:
    write_cine(tmp_path, 3, 96, seed=5)
    run = draw_cine(3, 96, seed=5)
    for number in range(3):
        assert np.array_equal(np.array(Image.open(tmp_path / f"frames/{number:03d}.png")), run.frames[number])
        assert np.array_equal(np.array(Image.open(tmp_path / f"masks/{number:03d}.png")) > 0, run.masks[number])


def test_the_command_draws_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["synthetic", "--out", tmp_path / "run", "--cine", 4, "--size", 64]
    assert call_command(*command) == 0
    assert "a cine run of 4 frames" in capsys.readouterr().out
    assert len(list((tmp_path / "run").rglob("*.png"))) == 8
    assert call_command(*command) == 2 and "is not empty" in capsys.readouterr().err
