"""A wheel in an environment of its own, with the third-party packages of this one: it works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from vesselseg.config.files import recipes

pytestmark = pytest.mark.process
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(build, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of an environment that holds the wheel."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    with zipfile.ZipFile(wheel) as content:
        content.extractall(packages)
        names = [name for name in content.namelist() if name.endswith("entry_points.txt")]
        assert "vesselseg = vesselseg.cli.main:main" in content.read(names[0]).decode()
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    script = folder / "bin" / "vesselseg"  # as installers write it for this entry point
    script.write_text(
        f"#!{folder / 'bin' / 'python'}\nimport sys\nfrom vesselseg.cli.main import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    return script


def run(script: Path, cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def test_a_config_is_read_by_its_name_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = """
from mmengine.config import Config
from vesselseg.config.files import find_config
path = find_config("configs/internvl3_8b_1x24gb.py")
print(path, Config.fromfile(path, lazy_import=True).to_dict()["model"]["sa2va"]["base"])
"""
    done = run(installed.with_name("python"), tmp_path, "-c", code)
    path, base = done.stdout.split()
    assert path.startswith(str(installed.parents[1])) and base == "weights/InternVL3-8B", done.stderr


def test_help_and_recipes(installed: Path, tmp_path: Path) -> None:
    help_text = run(installed, tmp_path, "--help")
    assert help_text.returncode == 0 and "─ Train ─" in help_text.stdout
    listed = run(installed, tmp_path, "configs")
    assert listed.returncode == 0, listed.stderr
    assert {line.split()[0] for line in listed.stdout.splitlines()} == {"recipe", *(each.name for each in recipes())}
    assert " 20.4 " in listed.stdout  # measured on internvl3_8b_1x24gb


def test_data_is_prepared_and_checked(installed: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("synthetic", "--out", "drawn", "--count", 6, "--size", 96, "--quiet"), "6 pictures of 2 patients"),
        (("prepare", "drawn", "--out", "data/drawn", "--quiet"), "6 images"),
        (("check", "data/drawn", "--quiet", "--out", "checked"), "images of 6 groups"),
    ):
        done = run(installed, tmp_path, *arguments)
        assert said in done.stdout, done.stderr
    assert (tmp_path / "data/drawn/report.html").is_file() and (tmp_path / "checked/check.html").is_file()
