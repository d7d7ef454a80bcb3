"""`vesselseg configs`, and which file a name of a config means."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.command_line import completed_command
from vesselseg.config.files import configs_folder, find_config, gpus_of, measured_file, recipes
from vesselseg.config.load import load_config
from vesselseg.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_leaf_is_a_recipe() -> None:
    leaves = {path for path in (REPOSITORY / "configs").rglob("*.py") if "_base_" not in path.parts}
    assert {recipe.path for recipe in recipes()} == leaves
    sizes = {recipe.name: (recipe.gpus, recipe.gpu_gib) for recipe in recipes()}
    assert sizes["internvl3_8b_4x24gb_zero3"] == (4, 24) and sizes["internvl3_2b_1x12gb"] == (1, 12)
    assert sizes["scratch_1gpu"] == (1, None) and sizes["tiny_cpu"] == (0, None)


@pytest.mark.parametrize("text", ["tiny_cpu", "tiny_cpu.py", "configs/tiny_cpu.py", "configs/tiny_cpu"])
def test_a_recipe_is_found_from_any_folder(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(text) == configs_folder() / "tiny_cpu.py"
    assert find_config("baselines/internvl3_8b_4x24gb_modules_to_save_zero3_offload").is_file()
    assert gpus_of(find_config("internvl3_8b_2x24gb")) == 2 and gpus_of(tmp_path / "mine.py") is None
    (tmp_path / "tiny_cpu.py").write_text("x = 1\n")
    assert find_config("tiny_cpu.py") == Path("tiny_cpu.py")  # a file that is there goes before a name


def test_other_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^configs/tiny_gpu\.py does not exist; .*did you mean 'tiny_cpu'\?"):
        find_config("configs/tiny_gpu.py")
    with pytest.raises(UserError, match=r"^--config _base_/models/internvl3 does not exist"):
        find_config("_base_/models/internvl3", "--config")


def test_the_list_shows_what_was_measured() -> None:
    done = completed_command("configs")
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert set(lines) == {"recipe", *(recipe.name for recipe in recipes())}
    row = next(
        row
        for row in json.loads(measured_file().read_text())
        if row["config"] == "configs/internvl3_8b_1x24gb.py" and not row["overrides"]
    )
    cells = lines["internvl3_8b_1x24gb"].split()[:5]
    assert cells[1:3] == ["1", "24"]
    assert cells[3:] == [f"{row['peak_reserved_gib']:.1f}", f"{row['s_per_image']:.3f}"]
    assert lines["tiny_cpu"].split()[1:5] == ["CPU", "-", "-", "-"]


def test_the_figures_are_those_of_the_results() -> None:
    """docs/results.md links the file that the list reads, and its table holds the same peak and seconds."""
    text = (REPOSITORY / "docs" / "results.md").read_text()
    assert f"({measured_file().relative_to(REPOSITORY / 'docs').as_posix()})" in text
    cells = re.findall(r"^\| 8B, features stored, micro-batch 16 \|(.*)$", text, flags=re.MULTILINE)[0].split("|")
    listed = next(line for line in completed_command("configs").stdout.splitlines() if "8b_1x24gb " in line).split()
    assert listed[3] in cells[2] and float(cells[4]) == pytest.approx(float(listed[4]), abs=1e-3)


def test_show_prints_every_setting(tmp_path: Path) -> None:
    done = completed_command("configs", "show", "tiny_cpu", "--cfg-options", "schedule.lr=0.5", "data_root=x")
    assert done.returncode == 0, done.stderr
    (tmp_path / "shown.py").write_text(done.stdout)
    shown = load_config(tmp_path / "shown.py")
    assert shown["schedule"]["lr"] == 0.5 and shown["data_root"] == "x"
    assert shown["checkpoint"] == load_config(find_config("tiny_cpu"))["checkpoint"]
    wrong = completed_command("configs", "show", "tiny_cpu", "--cfg-options", "schedule.lrr=1")
    assert wrong.returncode == 2 and "did you mean" in wrong.stderr and "schedule.lr" in wrong.stderr


def test_a_new_config_is_written_anywhere(tiny_base: Path, drawn_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "own" / "mine.py"
    out.parent.mkdir()
    wanted = ("--base", tiny_base, "--data", drawn_data, "--gpus", 0, "--sam2", "none", "--out", out)
    done = completed_command("configs", "new", *wanted)
    assert done.returncode == 0, done.stderr
    assert f"vesselseg train {out} 0" in done.stdout
    assert load_config(out)["data_root"] == str(drawn_data)
    assert (out.parent / "_base_" / "schedules").is_dir()
    again = completed_command("configs", "new", *wanted)
    assert again.returncode == 2 and "--force" in again.stderr
