"""Configs: all problems are reported at once, before anything is built; every value has one home."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import deepspeed
import pytest

from tests import setting_paths
from vesselseg.config.load import config_text, expand, load_config
from vesselseg.config.overrides import SETTING_PATHS, parse_overrides, refuse_unknown_settings
from vesselseg.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LEAVES = sorted(CONFIGS.glob("*.py"))
BASELINES = sorted((CONFIGS / "baselines").glob("*.py"))
RECIPES = [path for path in LEAVES if re.search(r"_\dx\d+gb", path.stem)]  # internvl3_8b_4x24gb_zero3
HEADER = """from mmengine.config import read_base
with read_base():
    from ._base_.datasets.vessel import *
    from ._base_.models.internvl3 import *
    from ._base_.runtime.default import *
    from ._base_.runtime.zero2 import *
    from ._base_.schedules.adamw_3e import *
"""


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    """A leaf in a folder that has the real bases; its text is the header until a test adds to it."""
    (tmp_path / "_base_").symlink_to(CONFIGS / "_base_")
    path = tmp_path / "leaf.py"
    path.write_text(HEADER)
    return path


def problems(path: Path, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, {key.replace("__", "."): value for key, value in overrides.items()})
    return str(caught.value)


@pytest.mark.parametrize("path", [*LEAVES, *BASELINES], ids=lambda path: path.stem)
def test_every_leaf_loads_and_is_short(path: Path) -> None:
    config = load_config(path)
    assert len(path.read_text().splitlines()) <= 25
    assert set(expand(config)) == {"model", "train_dataset", "strategy"}


@pytest.mark.parametrize("path", [*RECIPES, *BASELINES], ids=lambda path: path.stem)
def test_recipes_follow_the_failed_run_and_only_baselines_copy_its_tables(path: Path) -> None:
    config = load_config(path)
    schedule, sa2va = config["schedule"], config["model"]["sa2va"]
    theirs = {"dropout": 0.1, "modules_to_save": ["embed_tokens", "lm_head"]} if path in BASELINES else {}
    assert dict(sa2va["lora"]) == {"r": 64, "alpha": 128, "dropout": 0.0, "modules_to_save": (), **theirs}
    assert (schedule["lr"], schedule["weight_decay"], schedule["warmup_ratio"]) == (2e-5, 0.05, 0.1)
    assert (schedule["epochs"], schedule["clip"]) == (3, 1.0)
    zero = config["strategy"]["zero_optimization"]
    assert bool(zero.get("offload_optimizer")) == ("offload" in path.stem)
    assert zero["reduce_bucket_size"] == 20_000_000


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_match_their_names(path: Path) -> None:
    """model_size_GPUSxMEMORYgb: as many images per step whatever the GPUs, and 4 bits where weights need them."""
    config = load_config(path)
    model, size, place = path.stem.split("_")[:3]
    gpus, memory = (int(number) for number in place.removesuffix("gb").split("x"))
    schedule, sa2va = config["schedule"], config["model"]["sa2va"]
    assert schedule["micro_batch"] * schedule["accumulation"] * gpus == 32
    assert {"internvl3": "InternVL3-", "sa2va": "Sa2VA-"}[model] + size.upper() in sa2va["base"]
    weights = 2 * int(size.removesuffix("b")) * 1.1
    assert (sa2va["quantise"] == "nf4") == (gpus == 1 and weights + 4 > memory)
    shared_out = "zero3" in path.stem or (gpus > 1 and weights + 4 > memory)
    assert config["strategy"]["zero_optimization"]["stage"] == (3 if shared_out else 2)
    assert (config["features"]["store"], sa2va["trainable"]["high_res_convs"]) == ("disk", False)


def test_a_value_has_one_home_and_reaches_every_part(leaf: Path) -> None:
    config = load_config(
        leaf,
        {
            "data_root": "data/mine",
            "model.sa2va.base": "weights/mine",
            "model.sa2va.sam2.image_size": 512,
            "seed": 7,
            "schedule.clip": 0.5,
            "schedule.accumulation": 3,
            "schedule.micro_batch": 2,
        },
    )
    parts = expand(config)
    dataset, strategy = parts["train_dataset"], parts["strategy"]
    assert (dataset["data_root"], dataset["model_base"], dataset["seed"]) == ("data/mine", "weights/mine", 7)
    assert dataset["sam_image_size"] == parts["model"]["sa2va"]["sam2"]["image_size"] == 512
    assert strategy["gradient_clipping"] == 0.5
    assert (strategy["gradient_accumulation_steps"], strategy["train_micro_batch_size_per_gpu"]) == (3, 2)


def test_partitioned_weights_are_not_averaged(leaf: Path) -> None:
    leaf.write_text(HEADER + "strategy.zero_optimization.stage = 3\n")
    assert "schedule.ema: partitioned weights (ZeRO-3) are not averaged" in problems(leaf, schedule__ema=0.99)
    assert "schedule.ema must be at least 0 and below 1, found 1.0" in problems(leaf, schedule__ema=1.0)


def test_all_problems_are_reported_at_once(leaf: Path) -> None:
    leaf.write_text(
        HEADER
        + """
lr = 1e-4
schedule.update(epochs=0, warmup=0.1)
model.sa2va.lora.update(rank=8)
model.sa2va.sam2.update(imagesize=512)
model.loss.update(focal=1.0)
train_dataset.augment.update(rotate=5)
train_dataset.update(shuffle=True, seed=1)
strategy.update(gradient_clipping=2.0, zero=3)
strategy.zero_optimization.update(overlap_com=True)
validation.update(interval=-1)
precision = "fp8"
"""
    )
    message = problems(leaf, schedule__learning_rate=1e-3, modle__sa2va__base="x")
    for expected in (
        "unknown key 'lr'; did you mean 'schedule.lr'?",
        "schedule.warmup: no such setting; did you mean 'warmup_ratio'?",
        "model.sa2va.lora.rank: Lora takes no 'rank'",
        "model.sa2va.sam2.imagesize: Sam2Settings takes no 'imagesize'; did you mean 'image_size'?",
        "model.loss.focal: TotalLoss takes no 'focal'",
        "train_dataset.augment.rotate: Augment takes no 'rotate'; did you mean 'rotation'?",
        "train_dataset.shuffle: training_dataset takes no 'shuffle'",
        "train_dataset.seed: this value's home is seed",
        "strategy.gradient_clipping: this value's home is schedule.clip",
        "strategy.zero: VesselStrategy takes no 'zero'",
        "strategy.zero_optimization.overlap_com: DeepSpeedZeroConfig takes no 'overlap_com'; did you mean",
        "validation.interval must be a whole number above 0, found -1",
        "precision must be one of auto, bf16, fp32, found 'fp8'",
        "--cfg-options schedule.learning_rate: no such setting",
        "--cfg-options modle.sa2va.base: no such setting; did you mean 'model.sa2va.base'?",
    ):
        assert expected in message
    assert "leaf.py: 15 problem(s)" in message


def test_settings_that_exclude_each_other_are_reported(leaf: Path) -> None:
    switches = {
        "quantise": "nf4",
        "trainable__llm": "full",
        "activations_on_host": True,
        "gradient_checkpointing": False,
    }
    wrong = {f"model__sa2va__{name}": value for name, value in switches.items()}
    wrong["model__sa2va__lora__modules_to_save"] = ["lm_head"]
    message = problems(leaf, strategy__zero_optimization__stage=3, **wrong)
    for expected in (
        "quantise: weights in 4 bits cannot be partitioned (ZeRO-3); use runtime/zero2.py",
        'quantise: weights in 4 bits cannot train; set model.sa2va.trainable.llm="lora"',
        "activations_on_host: works for recomputed layers only; set model.sa2va.gradient_checkpointing=True",
        'lora.modules_to_save: tables train with model.sa2va.trainable.llm="lora" only',
        "4 problem(s)",
    ):
        assert expected in message


@pytest.mark.parametrize("stage", [0, 4, None])
def test_a_config_without_zero_is_refused(leaf: Path, stage: int | None) -> None:
    message = problems(leaf, strategy__zero_optimization__stage=stage)
    assert f"strategy.zero_optimization.stage must be 1, 2 or 3, found {stage}" in message
    assert "use runtime/zero2.py" in message


def test_a_setting_that_only_a_signature_names_can_be_set(leaf: Path) -> None:
    config = load_config(leaf, {"strategy.zero_optimization.round_robin_gradients": True})
    assert config["strategy"]["zero_optimization"]["round_robin_gradients"] is True


def test_an_assignment_that_drops_a_bases_keys_is_an_error(leaf: Path) -> None:
    leaf.write_text(HEADER + "strategy = dict(whole_layers=False)\n")
    message = problems(leaf)
    assert "`strategy = dict(...)` drops type, zero_optimization" in message and "strategy.update(...)" in message


def test_two_bases_that_disagree_are_an_error(leaf: Path, tmp_path: Path) -> None:
    leaf.write_text(HEADER + "    from ._base_.runtime.zero2_offload import *\n")
    message = problems(leaf)
    assert "runtime/zero2.py and runtime/zero2_offload.py both define 'strategy'" in message
    leaf.write_text(HEADER + "    from ._base_.runtime.zero2 import *\n")
    load_config(leaf)


def test_a_type_that_cannot_be_imported_is_an_error(leaf: Path) -> None:
    message = problems(leaf, train_dataset__type="vesselseg.training.training_data.training_set")
    assert "train_dataset.type: cannot import" in message and "has no 'training_set'" in message


def test_a_missing_base_is_reported(leaf: Path) -> None:
    leaf.write_text(HEADER.replace("    from ._base_.schedules.adamw_3e import *\n", ""))
    assert "missing key 'schedule'" in problems(leaf)


@pytest.mark.parametrize("text", ["schedule.lr = ", "import nothing.at.all\nx = nothing.y"])
def test_an_unreadable_config_is_one_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.py"):
        load_config(path)


def test_a_written_config_loads_as_the_same_config(leaf: Path, tmp_path: Path) -> None:
    config = load_config(leaf, {"schedule.betas": (0.8, 0.9), "train_dataset.augment": None, "load_from": "a.pth"})
    written = tmp_path / "ran.py"
    written.write_text(config_text(config))
    again = load_config(written)
    assert again.to_dict() == config.to_dict()
    assert again["train_dataset"]["augment"] is None and tuple(again["schedule"]["betas"]) == (0.8, 0.9)


def test_overrides_are_python_literals_or_text() -> None:
    given = ["a=1e-4", "b.c=[1, 2]", "d=None", "e=true", "f=data/my set", "g=x=y", "h='3'", "i=none"]
    assert parse_overrides(given) == {
        "a": 1e-4,
        "b.c": [1, 2],
        "d": None,
        "e": True,
        "f": "data/my set",
        "g": "x=y",
        "h": "3",
        "i": None,
    }
    with pytest.raises(ConfigError, match="takes KEY=VALUE, found 'oops'"):
        parse_overrides(["oops", "a=1"])


def test_names_of_settings_are_up_to_date() -> None:
    """Otherwise: python -m tests.setting_paths. Newer versions of DeepSpeed have further settings of their own."""
    known, rendered = SETTING_PATHS.read_text(encoding="utf-8").split(), setting_paths.render().split()
    theirs = "strategy.zero_optimization."
    assert [path for path in known if not path.startswith(theirs)] == [
        path for path in rendered if not path.startswith(theirs)
    ]
    assert deepspeed.__version__ != "0.18.9" or known == rendered


@pytest.mark.parametrize(
    ("text", "overrides", "refused"),
    [
        ("", ["loader.num_worker"], True),
        ("", ["strategy.amp"], False),  # load_config says where this value is set instead
        ('custom_imports = dict(imports=["mine"])', ["model.loss.terms.mine"], False),
        ("", ["model.type", "model.mine"], False),
        ("", ["custom_imports", "model.mine"], False),
        ("strategy.update(mine=dict(size=1))", ["strategy.mine.size"], False),
        ("strategy.update(mine_too=1)", ["strategy.mine"], True),
    ],
)
def test_a_mistyped_override_is_refused_by_its_name(
    tmp_path: Path, text: str, overrides: list[str], refused: bool
) -> None:
    """Only where nothing could define it: what a config brings itself is left to load_config."""
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no such setting") if refused else nullcontext():
        refuse_unknown_settings(path, overrides)
