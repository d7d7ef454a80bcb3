from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from tests.command_line import run_command
from tests.tiny import SAM2, model_arguments, save_checkpoint, shaken_model
from tests.training.conftest import Training, environment, rows
from tests.training.planned import planned, write_shapes
from vesselseg.config.load import load_config
from vesselseg.errors import UserError
from vesselseg.models.sam2_grounding import build_sam2
from vesselseg.training import recipe
from vesselseg.training.recipe import MICRO_BATCH, RecipeRequest, Sizes, choose_batch, choose_runtime, write_leaf

# Parameters: encoders with SAM2-L, decoder blocks, the rest (tables, projector)
MODELS = {
    "2B": Sizes(528_000_000, 1_310_000_000, 480_000_000),
    "8B": Sizes(528_000_000, 6_530_000_000, 1_130_000_000),
    "14B": Sizes(528_000_000, 13_220_000_000, 1_620_000_000),
    "26B": Sizes(5_760_000_000, 18_720_000_000, 1_290_000_000),
    "38B": Sizes(5_760_000_000, 31_200_000_000, 1_660_000_000),
}


@pytest.mark.parametrize(
    ("model", "gpus", "gib", "runtime", "quantise"),
    [
        ("2B", 1, 24, "zero2", False),
        ("2B", 1, 12, "zero2", False),
        ("8B", 1, 24, "zero2", False),
        ("8B", 4, 20, "zero2_offload", False),
        ("8B", 1, 16, "zero2", True),
        ("8B", 1, 12, "zero2", True),
        ("8B", 4, 11, "zero3_offload", False),
        ("14B", 1, 24, "zero2", True),
        ("14B", 1, 12, "zero3_offload", False),
        ("14B", 1, 40, "zero2", False),
        ("26B", 1, 24, "zero3_offload", False),
        ("26B", 4, 24, "zero3", False),
        ("26B", 1, 80, "zero2", False),
        ("38B", 1, 80, "zero2", False),
    ],
)
def test_the_runtime_follows_size_and_memory(model: str, gpus: int, gib: float, runtime: str, quantise: bool) -> None:
    choice = choose_runtime(MODELS[model], gpus, gib)
    assert (choice.runtime, choice.quantise) == (runtime, quantise)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    published = {"8B": "InternVL3-8B", "14B": "InternVL3-14B", "26B": "InternVL2.5-26B"}
    folder = tmp_path_factory.mktemp("shapes")
    return {size: write_shapes(folder / name, name) for size, name in published.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "gpus", "gib"),
    [("8B", 1, 12), ("8B", 4, 20), ("8B", 1, 22), ("14B", 1, 16), ("14B", 1, 36), ("26B", 4, 24), ("26B", 1, 24)],
)
def test_the_chosen_runtime_fits_by_the_plan(shapes: dict[str, Path], model: str, gpus: int, gib: float) -> None:
    choice = choose_runtime(MODELS[model], gpus, gib)
    stored = choice.runtime.startswith("zero2")
    micro_batch, accumulation = choose_batch(1000, gpus, MICRO_BATCH if stored else 1)
    like = {"zero2": "internvl3_8b_4x24gb"}.get(choice.runtime, f"internvl3_8b_4x24gb_{choice.runtime}")
    plan = planned(
        like,
        shapes[model],
        gpus,
        gib,
        model__sa2va__quantise="nf4" if choice.quantise else None,
        model__sa2va__gradient_checkpointing=True,
        features__store="disk" if stored else None,
        schedule__micro_batch=micro_batch,
        schedule__accumulation=accumulation,
    )
    assert plan.fits and not plan.tight


@pytest.mark.parametrize(
    ("images", "processes", "micro_batch", "expected"),
    [
        (10_000, 4, 8, (8, 1)),
        (10_000, 1, 8, (8, 4)),
        (10_000, 4, 1, (1, 8)),
        (320, 4, 4, (4, 2)),
        (160, 4, 4, (4, 1)),
        (160, 4, 1, (1, 4)),
        (18, 4, 4, (1, 1)),
    ],
)
def test_an_epoch_keeps_ten_optimizer_steps_where_it_can(
    images: int, processes: int, micro_batch: int, expected: tuple[int, int]
) -> None:
    assert choose_batch(images, processes, micro_batch) == expected


@pytest.fixture
def configs(tmp_path: Path, repository: Path) -> Path:
    """A folder of leaves of one's own."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "_base_").symlink_to(repository / "configs" / "_base_")
    return folder


@pytest.mark.process
def test_a_written_config_trains(training: Training, configs: Path, repository: Path, tmp_path: Path) -> None:
    out = configs / "mine.py"
    wanted = ["--base", str(training.base), "--data", str(training.data), "--gpus", "1", "--sam2", "none"]
    done = run_command("configs", "new", *wanted, "--out", out, env=environment())
    assert done.returncode == 0, done.stderr
    assert "bash tools/dist.sh train" in done.stdout
    assert len(out.read_text().splitlines()) <= 25
    # SAM2-L at 1024 pixels takes a CPU too long; everything else is as written.
    small = {"variant": "tiny", "image_size": 64, "trunk": SAM2["trunk"]}
    options = [f"model.sa2va.sam2.{name}={value}" for name, value in small.items()]
    command = [
        "bash",
        str(repository / "tools" / "dist.sh"),
        "train",
        str(out),
        "1",
        "--work-dir",
        str(tmp_path / "run"),
    ]
    options.append(f"features.folder={tmp_path / 'features'}")
    command += ["--cfg-options", *options, "schedule.max_iters=2", "validation.max_images=1", "logging.interval=1"]
    trained = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert len(rows(tmp_path / "run", "train")) == 2 and (tmp_path / "run" / "iter_2.pth").exists()


def test_the_config_for_an_internvl_base_and_a_sam2_file(training: Training, configs: Path, tmp_path: Path) -> None:
    file = tmp_path / 'sam2 "large".pt'
    torch.save({"model": build_sam2({"variant": "tiny", "version": "2.1", "image_size": 64}).state_dict()}, file)
    reason = write_leaf(RecipeRequest(str(training.base), training.data, 4, 0.5, str(file)), configs / "mine.py")
    config = load_config(configs / "mine.py")
    assert config["strategy"]["zero_optimization"]["stage"] == 3 and "stay in main memory" in reason
    sam2 = config["model"]["sa2va"]["sam2"]
    assert (sam2["checkpoint"], sam2["variant"], sam2["version"]) == (str(file), "tiny", "2.1")
    assert config["schedule"]["accumulation"] == 1 and config["data_root"] == str(training.data)
    with pytest.raises(UserError, match="exists; name another file or add --force"):
        write_leaf(RecipeRequest(str(training.base), training.data, 4, 24, None), configs / "mine.py")
    write_leaf(RecipeRequest(str(training.base), training.data, 0, 24, None), configs / "mine.py", force=True)
    assert load_config(configs / "mine.py")["model"]["sa2va"]["sam2"]["checkpoint"] is None


def test_a_card_that_is_too_small_gets_4_bits_and_stored_features(
    training: Training, configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "SAM2_PARAMETERS", 3_000_000_000)  # 5.6 GiB that leave the card
    reason = write_leaf(RecipeRequest(str(training.base), training.data, 1, 8, None), configs / "mine.py")
    assert "in 4 bits do" in reason
    config = load_config(configs / "mine.py")
    assert config["model"]["sa2va"]["quantise"] == "nf4" and config["strategy"]["zero_optimization"]["stage"] == 2
    assert config["model"]["sa2va"]["trainable"]["high_res_convs"] is False
    assert "runtime.stored_features" in (configs / "mine.py").read_text()


def test_requests_that_cannot_train_are_refused(training: Training, configs: Path, tmp_path: Path) -> None:
    def message(out: Path, **changes: object) -> str:
        values = {
            "base": str(training.base),
            "data": training.data,
            "gpus": 1,
            "gpu_gib": 24.0,
            "sam2": None,
            **changes,
        }
        with pytest.raises(ValueError) as raised:
            write_leaf(RecipeRequest(**values), out)
        assert not out.exists()
        return str(raised.value)

    assert "write it to configs/" in message(tmp_path / "mine.py")
    assert "letters, digits and underscores" in message(configs / "my-config.py")
    assert "contains no SAM2: get sam2_hiera_large.pt" in message(configs / "a.py", sam2="weights/none.pt")
    checkpoint = save_checkpoint(shaken_model(training.base), tmp_path / "x.pth", model_arguments(training.base))
    assert "not a model folder; name its model" in message(configs / "a.py", base=str(checkpoint))
    assert "a training checkpoint of vesselseg, not a SAM2 file" in message(configs / "a.py", sam2=str(checkpoint))
    assert "annotations.json does not exist" in message(configs / "a.py", data=tmp_path / "nowhere")
