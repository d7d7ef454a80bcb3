"""Real trainings that start from published and from exported weights, through the command line."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.command_line import call_command
from tests.fork_server import python
from tests.models.checkpoints.published_files import LANGUAGE, qwen2_state, save
from tests.training.conftest import Training, environment, rows, write_data
from vesselseg.config.load import expand, load_config
from vesselseg.config.settings import read_section
from vesselseg.dataset.collate import collate
from vesselseg.losses.total import TotalLoss
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.training_file import build_from_training_file
from vesselseg.models.sam2_grounding import build_sam2
from vesselseg.registry import build
from vesselseg.training.plan import TrainPlan
from vesselseg.training.sampler import StreamSampler

pytestmark = pytest.mark.process

SHORT = {
    "schedule__max_iters": 2,
    "schedule__accumulation": 1,
    "model__sa2va__lora__dropout": 0.0,
    "model__sa2va__trainable__projector": False,
    "train_dataset__type": "vesselseg.training.training_data.training_dataset",
    "validation__interval": None,
}


@pytest.fixture(scope="module")
def training(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    folder = tmp_path_factory.mktemp("start")
    return Training(write_data(folder / "data"), tiny_base, folder / "trace")


def run(training: Training, work_dir: Path, **options: Any) -> None:
    command = training.command(work_dir, processes=1, **{**SHORT, **options})
    command = [part for part in command if not part.startswith("train_dataset.trace=")]
    done = subprocess.run(command, text=True, capture_output=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (work_dir / "console.txt").write_text(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def sam2(training: Training, repository: Path) -> dict[str, Any]:
    """A file of SAM2's with the sizes of the tiny config."""
    settings = {**load_config(repository / "configs" / "tiny_cpu.py")["model"]["sa2va"]["sam2"], "image_size": 64}
    file = training.data.parent / "sam2_hiera_tiny.pt"
    torch.manual_seed(5)
    torch.save({"model": build_sam2(settings).state_dict()}, file)
    return {**settings, "checkpoint": str(file)}


@pytest.fixture(scope="module")
def published(training: Training, sam2: dict[str, Any]) -> tuple[Path, dict[str, Tensor]]:
    model = build_model(str(training.base), sam2=sam2, lora={"r": 8, "alpha": 16})
    state = qwen2_state(model, 8, (11,))
    return save(state, training.data.parent / "iter_3672.pth"), state


@pytest.fixture(scope="module")
def continued(training: Training, sam2: dict[str, Any], published: tuple[Path, dict[str, Tensor]]) -> Path:
    """Two iterations on top of the published checkpoint."""
    work_dir = training.data.parent / "continued"
    run(training, work_dir, load_from=published[0], model__sa2va__sam2__checkpoint=sam2["checkpoint"])
    return work_dir


def test_training_goes_on_from_a_published_checkpoint(
    continued: Path, published: tuple[Path, dict[str, Tensor]]
) -> None:
    state = published[1]
    found = torch.load(continued / "iter_2.pth", weights_only=True)["state_dict"]
    console = (continued / "console.txt").read_text()
    assert "does not hold LoRA's alpha: 16 from the config is used" in console
    assert "of the base's language_model.model.embed_tokens.weight are changed and kept" in console
    # frozen by our defaults, changed by the file, needed by whoever uses the new checkpoint
    assert torch.equal(found["projector.linear_1.weight"], state["mllm.model.mlp1.1.weight"])
    table = state[f"{LANGUAGE}lm_head.modules_to_save.default.weight"]
    assert torch.equal(found["language_model.lm_head.weight"], table[:-5])
    name = "self_attn.q_proj.lora_A.default.weight"
    before, after = state[f"{LANGUAGE}model.layers.0.{name}"], found[f"language_model.model.layers.0.{name}"]
    assert 0 < (after - before).abs().max() < 0.1  # trained on from there, not from new adapters


@pytest.fixture(scope="module")
def exported(training: Training, continued: Path, repository: Path) -> Path:
    out = training.data.parent / "exported"
    tool = [python(), str(repository / "tools" / "convert_to_hf.py"), str(continued / "iter_2.pth")]
    done = subprocess.run(
        [*tool, "--save-path", str(out), "--images", str(training.data / "images"), "--check", "1"],
        text=True,
        capture_output=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_losses_continue_where_they_were(training: Training, continued: Path, exported: Path) -> None:
    work_dir = training.data.parent / "again"
    # The leaf still names the first base and SAM2's file; the exported folder takes the place of both.
    run(training, work_dir, load_from=exported, model__sa2va__sam2__checkpoint=training.data / "no_such_file.pt")
    first = rows(work_dir, "train")[0]
    expected = losses_of_first_batch(continued / "iter_2.pth", work_dir / "config.py")
    for name, value in expected.items():
        assert first[name] == pytest.approx(value, abs=1e-5), name
    started_at = rows(continued, "train")[0]["loss"]
    assert abs(first["loss"] - started_at) > 1e-4  # not merely the same base again
    content = torch.load(work_dir / "iter_2.pth", weights_only=True)
    assert content["model_config"]["base"] == str(exported)
    assert not any("base_layer" in name or "embed_tokens" in name for name in content["state_dict"])
    assert build_from_training_file(work_dir / "iter_2.pth")[0].randomly_initialised == ()


def losses_of_first_batch(checkpoint: Path, config_file: Path) -> dict[str, float]:
    """The checkpoint's model on the batch with which the config's run starts."""
    config = load_config(config_file)
    parts = expand(config)
    dataset = build(parts["train_dataset"])
    plan = TrainPlan(len(dataset), 1, read_section(config, "schedule"))
    batch = collate([dataset[item] for item in next(iter(StreamSampler(plan, 0, config["seed"])))])
    model, _ = build_from_training_file(checkpoint)
    with torch.no_grad():
        output = model(batch)
        losses = TotalLoss(**parts["model"]["loss"])(
            output.mask_logits, output.answer_logits, output.answer_labels, batch
        )
    return {name: float(value) for name, value in losses.items()}


def test_a_published_checkpoint_is_converted_with_a_config(
    training: Training,
    continued: Path,
    published: tuple[Path, dict[str, Tensor]],
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tool = [python(), str(repository / "tools" / "convert_to_hf.py")]
    images = ["--images", str(training.data / "images"), "--check", "1", "--save-path", str(tmp_path / "out")]
    assert call_command("convert", published[0], *images) == 2
    told = "holds no settings. Pass a config with its base folder"
    assert told in capsys.readouterr().err
    command = [*tool, str(continued / "config.py"), str(published[0]), *images]
    done = subprocess.run(command, text=True, capture_output=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "does not hold LoRA's alpha: 16 from the config is used" in done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
