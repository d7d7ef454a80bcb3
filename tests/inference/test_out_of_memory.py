"""Out-of-memory errors are recognised: those of the libraries, provoked where possible."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from vesselseg.errors import UserError
from vesselseg.inference import load
from vesselseg.inference.options import LoadOptions
from vesselseg.inference.out_of_memory import is_out_of_memory, probability_map_pixels

HUGE = 2**60


def test_errors_of_devices_and_libraries() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    refused = RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive")
    assert is_out_of_memory(refused)


def test_real_allocations_that_fail() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(HUGE, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(HUGE, np.uint8)
    with pytest.raises(cv2.error) as of_opencv:
        cv2.resize(np.zeros((2, 2), np.float64), (30_000_000, 30_000_000))
    with pytest.raises(OSError) as of_system:
        mmap.mmap(-1, HUGE)
    for caught in (of_torch, of_numpy, of_opencv, of_system):
        assert is_out_of_memory(caught.value), caught.value


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape mismatch"), OSError(errno.ENOSPC, "No space left"), UserError("a.png: not enough memory")],
)
def test_other_errors(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("loading", "gpus", "advice"),
    [
        (LoadOptions(), 4, "--quantise nf4 (a quarter of bf16's memory), --device split (over 4 GPUs), ending"),
        (LoadOptions("cpu"), 0, "--quantise nf4 (a quarter of bf16's memory), ending"),
        (LoadOptions("split", quantise="nf4"), 4, "ending"),
    ],
)
def test_a_model_that_does_not_fit_is_reported(
    loading: LoadOptions, gpus: int, advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(load, "load_predictor", lambda *_: torch.empty(HUGE, dtype=torch.uint8))
    with pytest.raises(UserError) as caught:
        loading.predictor(tmp_path / "large")
    assert f"{tmp_path / 'large'}: memory ran out while it was loaded (" in str(caught.value)
    assert "allocate" in str(caught.value) and f"Try {advice} other" in str(caught.value)


def test_each_phrase_has_a_probability_map() -> None:
    assert probability_map_pixels(Image.new("RGB", (30, 20)), phrases=3) == 1800
