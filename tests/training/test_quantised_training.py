"""A training on weights in 4 bits, through the command line, to a converted model; and machines that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import picture
from tests.training.conftest import Training, rows
from vesselseg.errors import UserError
from vesselseg.export.convert import convert
from vesselseg.inference.load import load_predictor
from vesselseg.models.build import build_model
from vesselseg.models.lora import checkpoint_state
from vesselseg.training.strategy import require_compiler, resolve_precision


@pytest.mark.process
def test_a_training_on_4_bits_learns_and_is_converted(training: Training, tmp_path: Path) -> None:
    """With bf16 as on a GPU: DeepSpeed casts the model, and packed weights must come through it."""
    work_dir = tmp_path / "nf4"
    switches = {"quantise": "nf4", "gradient_checkpointing": 1, "activations_on_host": True}
    options = {f"model__sa2va__{name}": value for name, value in switches.items()}
    schedule = {"schedule__max_iters": 12, "schedule__accumulation": 1, "checkpoint__interval": 12}
    schedule |= {"train_dataset__limit": 2, "schedule__epochs": 12}  # the same pictures first and last
    outcome = training.run(work_dir, precision="bf16", validation__max_images=1, **options, **schedule)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    losses = [row["loss"] for row in rows(work_dir, "train")]
    assert len(losses) == 12 and min(losses) < 0.9 * losses[0]  # it jumps where SAM2 takes another mask for its best
    text = [row["loss_lm"] for row in rows(work_dir, "train")]
    assert text[-1] < text[0]  # what goes through the 4-bit layers

    content = torch.load(work_dir / "iter_12.pth", weights_only=True)
    assert content["model_config"]["quantise"] == "nf4"
    plain = build_model(**{**content["model_config"], "quantise": None})
    assert content["state_dict"].keys() == checkpoint_state(plain).keys()
    assert not any(value.dtype == torch.uint8 for value in content["state_dict"].values())
    picture(0).save(tmp_path / "0.png")
    assert convert(work_dir / "iter_12.pth", tmp_path / "hf", [tmp_path / "0.png"]).probability < 1e-4
    assert load_predictor(work_dir / "iter_12.pth", device="cpu").model.config.threshold == content["threshold"]


def test_a_gpu_without_bf16_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch answers on a Turing card."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GeForce RTX 2080 Ti")
    device = torch.device("cuda", 0)
    for precision in ("auto", "bf16"):
        with pytest.raises(UserError, match=r"RTX 2080 Ti does not support bf16, [\s\S]*Set precision=fp32"):
            resolve_precision(precision, device)
    assert resolve_precision("fp32", device) == "fp32"
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"


def test_a_missing_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require_compiler.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no C\+\+ compiler \(g\+\+\) is on PATH; install one"):
        require_compiler()
