"""A Python that lacks some of the installed packages."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path


def run_without(script: str, folder: Path, *packages: str) -> None:
    """Run a script in a process whose packages are all that are installed but these; it must succeed.

    folder: new or empty; the process works there.
    """
    site = folder / "site-packages"
    site.mkdir(parents=True)
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not any(package in entry.name.lower() for package in packages):
            (site / entry.name).symlink_to(entry)
    changed = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(site)}
    check = f"import importlib.util as found\nassert not [name for name in {packages!r} if found.find_spec(name)]\n"
    command = [sys.executable, "-S", "-c", check + script]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **changed}, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
