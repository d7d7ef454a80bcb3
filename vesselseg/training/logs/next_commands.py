"""The commands that come after a training, with the run's own paths."""

from __future__ import annotations

import shlex
from pathlib import Path

from vesselseg.training.logs.analysis import Analysis


def next_commands(run: Analysis) -> list[tuple[str, str]]:
    """(purpose, command). Words in capitals must be filled in by the user: the files do not contain them."""
    folder = run.path if run.path.is_dir() else run.path.parent
    own = run.log.kind == "vesselseg"
    commands = []
    if own and run.state == "stopped":
        commands.append(_resume(folder, any(one.resumable for one in run.checkpoints)))
    chosen = next(iter(run.checkpoints), None)
    if chosen and not chosen.best:
        chosen = max(run.checkpoints, key=lambda one: one.iteration or 0)
    if chosen is None:
        return commands
    weights = chosen.path
    if Path(weights).is_dir():
        commands.append(_one_file(folder, Path(weights)))
        weights = "WEIGHTS"
    config = str(folder / "config.py") if own else "CONFIG"
    hf, data = str(folder / "hf"), run.log.data_root or "data/NAME"
    note = "" if own else "; CONFIG: the one below configs/ with this run's base, SAM2 file and LoRA rank"
    return [
        *commands,
        (
            "turn the weights into a Hugging Face folder" + note,
            _line("convert", config, weights, "--out", hf),
        ),
        (
            "score it on the test split, with the threshold searched on the validation split",
            _line("eval", hf, "--data", data, "--split", "test", "--threshold", "auto", "--out", str(folder / "eval")),
        ),
    ]


def _resume(folder: Path, resumable: bool) -> tuple[str, str]:
    config, work_dir = shlex.quote(str(folder / "config.py")), shlex.quote(str(folder))
    line = f"vesselseg train {config} GPUS --out {work_dir} --resume auto"
    if resumable:
        return "continue from the newest checkpoint", line
    return "no complete checkpoint to continue from: start from the beginning", line


def _one_file(folder: Path, weights: Path) -> tuple[str, str]:
    """DeepSpeed's own script in the work folder turns its checkpoint folder into one file."""
    out = folder / f"{weights.stem}_float32"
    words = (folder / "zero_to_fp32.py", folder, out, "--tag", weights.name)
    what = "turn DeepSpeed's folder into one file; WEIGHTS below is the file that this writes"
    return what, "python " + " ".join(shlex.quote(str(word)) for word in words)


def _line(command: str, *words: str) -> str:
    return f"vesselseg {command} " + " ".join(shlex.quote(word) for word in words)
