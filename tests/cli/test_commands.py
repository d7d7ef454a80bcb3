"""The command line: what commands exist, what they take, what wrong ones are answered with, and how quickly."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vesselseg
from tests import machine_speed
from tests.cli.commands import NEW, OLD_OPTIONS, all_commands, arguments_of, names_of
from tests.command_line import call_command, completed_command, parsed
from vesselseg.cli.main import STAGES
from vesselseg.cli.predict import next_step
from vesselseg.cli.train import Options, process_arguments
from vesselseg.training.job_process import TrainOptions

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = sorted({words for words, _ in all_commands()})
HEAVY = (
    *("torch", "transformers", "mmengine", "deepspeed", "xtuner", "numpy", "scipy", "skimage", "cv2", "PIL"),
    *("matplotlib", "pydicom", "yaml", "onnx", "fastapi", "tqdm"),
)
CPU_LIMIT = 0.5  # seconds on an idle core
# Wrong command lines -> what is said of them.
WRONG: dict[tuple[str, ...], str] = {
    ("evl",): "unknown command 'evl'; did you mean 'eval'?; see vesselseg --help",
    ("folds", "mke"): "unknown command 'mke'; did you mean 'make'?; see vesselseg folds --help",
    (
        "eval",
        "m",
        "d",
        "--ot",
        "x",
    ): "--out is missing: --ot is no option; did you mean '--out'?; see vesselseg eval --help",
    ("eval", "m", "d", "--out", "x", "--seeed", "1"): "unknown option --seeed; did you mean '--seed'?",
    ("eval", "m", "--out", "x"): "DATA is missing; see vesselseg eval --help",
    ("eval", "m", "d", "e", "--out", "x"): "unexpected argument 'e'; see vesselseg eval --help",
    ("eval", "m", "d", "--out"): "--out needs a value; see vesselseg eval --help",
    ("eval", "m", "d", "--out", "x", "--split", "tst"): 'Invalid value "tst" for --split. Choose from: "train", "val"',
    ("eval", "m", "d", "--out", "x", "--batch", "0"): "--batch '0': expected a whole number from 1",
    ("eval", "m", "d", "--out", "x", "--seed", "a"): 'Invalid value for --seed: unable to convert "a" into int',
    ("eval", "m", "d", "--out", "x", "--threshold", "1"): "'1': expected a number from 0 to below 1, auto or stored",
    ("eval", "m", "d", "--out", "x", "--min-component", "-3"): "--min-component -3: expected a number of pixels, 0 or",
    ("eval", "m", "d", "--out", "x", "--store-threshold"): "--store-threshold stores what --threshold auto found",
    ("eval", "m", "d", "--out", "x", "--threshold-metric", "iou"): "without --threshold auto nothing is searched",
    ("eval", "m", "d", "--out", "x", "--threshold-metric", "x"): "no best threshold to search; expected one of dice,",
    ("eval", "m", "d", "--out", "m/x"): "--out m/x is inside m, which is input; choose another folder",
    (
        "predict",
        "m",
        "i",
        "--out",
        "x",
        "--threshold",
        "auto",
    ): "auto: searching needs labelled images, which vesselseg",
    (
        "predict",
        "m",
        "i",
        "--out",
        "x",
        "--save",
        "mask",
    ): "save: expected some of masks, probs, overlay, labelme, coco",
    (
        "predict",
        "m",
        "i",
        "--out",
        "x",
        "--keyframes",
        "3",
    ): "keyframes: only mode 'memory' uses them; add --cine memory",
    ("predict", "m", "i", "--out", "x", "--cine", "memry"): 'Did you mean "memory"?',
    ("predict", "m", "i", "--out", "x", "--tta", "flip"): 'Choose from: "flips". Did you mean "flips"?',
    ("serve", "m", "--port", "70000"): "--port 70000: expected a number from 1 to 65535, or 0",
    ("serve", "m", "--host", "0.0.0.0"): "no token is set; add --token-file",
    ("serve", "m", "--token", "a", "--token-file", "b"): "--token-file specified multiple times",
    ("serve", "m", "--token-file", "/nowhere/token"): "--token-file: /nowhere/token: No such file",
    (
        "prepare",
        "s",
        "--out",
        "x",
        "--split",
        "1,2",
    ): "--split 1,2: expected three shares for train,val,test that add up",
    ("prepare", "s", "--out", "x", "--first-frame", "2"): "Choose from: 0, 1",
    (
        "train",
        "internvl3_8b_1x24gp",
    ): "does not exist; configs are in the folder configs/, vesselseg configs lists them; did "
    "you mean 'internvl3_8b_1x24gb'?",
    ("train", "tiny_cpu", "two"): "GPUS 'two': expected a whole number from 0; see vesselseg train --help",
    (
        "train",
        "tiny_cpu",
        "--cfg-options",
        "schedule.lrr=1",
        "model.sa2va.sam2.image_siz=64",
        "seed=1",
    ): "2 problem(s)\n"
    "  --cfg-options schedule.lrr: no such setting; did you mean 'schedule.lr'?\n"
    "  --cfg-options model.sa2va.sam2.image_siz: no such setting; did you mean 'model.sa2va.sam2.image_size'?",
    ("train", "tiny_cpu", "--cfg-options", "seed"): "--cfg-options takes KEY=VALUE, found 'seed'",
    ("plan", "tiny_cpu", "--cfg-options", "data_rootx=x"): "data_rootx: no such setting; did you mean 'data_root'?",
    ("configs", "show", "tiny_cpu", "--cfg-options", "model.los=x"): "no such setting; did you mean 'model.loss'?",
    ("plan", "tiny_cpu", "--card", "4080"): "no card named '4080'; known are 3090",
    ("plan", "tiny_cpu", "--gpu-gib", "0"): "--gpu-gib '0': expected a number above 0",
    ("convert", "a", "b", "c", "--out", "x"): "expected CONFIG CHECKPOINT or CHECKPOINT, found 3 paths",
    ("convert", "gone.pth", "--save-path", "x"): "gone.pth does not exist; name a checkpoint",
    ("compare", "a"): "expected at least two results to compare",
    ("report", "training", "a", "b"): "several runs, or a log file, need --out DIR",
    ("baselines", "unet", "d", "--out", "x", "--size", "33"): "--size 33: expected a multiple of 32 from 64",
    ("distill", "m", "d", "--out", "x", "--minutes", "0"): "--minutes '0': expected a number above 0",
    ("browse", "d", "--port", "99999"): "--port 99999: expected a number from 1 to 65535",
    ("completion", "fish"): 'Choose from: "bash", "zsh"',
}
LIGHT = f"""
import contextlib, io, json, sys
from vesselseg.cli.main import main
for words in json.loads(sys.argv[1]):
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        status = main(words)
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    print(json.dumps([status, errors.getvalue(), loaded]))
"""


def test_every_command_of_before_is_there_and_takes_the_same_options() -> None:
    taken = {words: names_of(app) for words, app in all_commands()}
    assert set(taken) == {*OLD_OPTIONS, *NEW}
    missing = {words: set(old) - taken[words] for words, old in OLD_OPTIONS.items() if set(old) - taken[words]}
    assert missing == {}


def test_every_parameter_has_one_line_of_help() -> None:
    for words, app in all_commands():
        for argument in arguments_of(app):
            text = argument.parameter.help or ""
            assert text.strip() and "\n" not in text, f"{' '.join(words)} {argument.name}: {text!r}"


def test_one_word_for_one_thing() -> None:
    """What is written is --out, and the dataset folder DATA or --data, whatever they were called before."""
    for words, app in all_commands():
        assert not names_of(app) & {"--save-path", "--work-dir"} or "--out" in names_of(app), words
    assert parsed("convert", "a.pth", "--save-path", "x") == parsed("convert", "a.pth", "--out", "x")
    assert parsed("train", "c", "--work-dir", "x") == parsed("train", "c", "--out", "x")
    assert parsed("check", "d") == parsed("check", "--data", "d")
    assert parsed("eval", "m", "d", "--out", "x") == parsed("eval", "m", "--data", "d", "--out", "x")


def test_an_option_given_twice_counts_as_it_was_given_last() -> None:
    assert parsed("eval", "m", "d", "--out", "x", "--out", "y", "--seed", 1, "--seed", 2)["seed"] == 2


def test_values_of_options() -> None:
    given = parsed("predict", "m", "i", "--out", "x", "--phrase", "a", "--phrase", "b", "--save", "masks, coco,masks")
    assert given["options"].phrases == ("a", "b") and given["options"].save == ("masks", "coco")
    assert parsed("predict", "m", "i", "--out", "x")["options"].save == ("masks", "overlay")
    assert parsed("predict", "m", "i", "--out", "x", "--threshold", "stored")["options"].threshold is None
    memory = ("predict", "m", "i", "--out", "x", "--cine", "memory", "--keyframes")
    assert parsed(*memory, "0,12,40")["options"].keyframes == (0, 12, 40)
    assert parsed(*memory, "4")["options"].keyframes == 4
    assert parsed("eval", "m", "d", "--out", "x", "--threshold", "auto")["threshold"] == "auto"
    assert parsed("train", "c")["profile"] is None and parsed("train", "c", "--profile")["profile"] == ()
    assert parsed("train", "c", "--profile", "7", "--force")["profile"] == (7,)
    changed = parsed("train", "c", "4", "--cfg-options", "a.b=1", "c=-2", "--force")
    assert changed["cfg_options"] == ("a.b=1", "c=-2") and changed["gpus"] == 4 and changed["options"].force
    assert parsed("baselines", "frangi", "d", "--split", "val", "test", "--out", "x")["split"] == ("val", "test")
    assert parsed("prepare", "s", "--out", "x", "--split", "80,10,10")["options"].fractions == (0.8, 0.1, 0.1)
    assert parsed("prepare", "s", "--out", "x", "--split", "0,0,1")["options"].fractions == (0, 0, 1)


@pytest.mark.process
def test_help_and_wrong_arguments_import_nothing_heavy() -> None:
    """In one fresh interpreter, each command line after the other: none of them may import what takes long."""
    lines = [["--help"], ["--version"], *([*words, "--help"] for words in WORDS), *map(list, WRONG)]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(lines)], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    answers: list[list[Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(lines)
    for line, (status, errors, loaded) in zip(lines, answers):
        message = WRONG.get(tuple(line))
        assert loaded == [], f"vesselseg {' '.join(line)} imports {', '.join(loaded)}"
        assert status == (0 if message is None else 2), (line, errors)
        assert message is None or (errors.startswith("error: ") and message in errors), (line, errors)


@pytest.mark.process
@pytest.mark.parametrize("words", [("--help",), ("prepare", "--help"), ("eval", "m"), ("train", "internvl3_8b")])
def test_an_answer_takes_less_than_half_a_second_of_cpu(words: tuple[str, ...]) -> None:
    """The quickest of three, since other work on the machine makes CPU time longer, never shorter."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "vesselseg", *words], capture_output=True, check=False, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    limit = CPU_LIMIT * max(machine_speed.slower(), machine_speed.measure()[0])
    assert min(taken) < limit, f"{min(taken):.2f} s, at most {limit:.2f} are expected"


def test_help_lists_the_commands_by_stage_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_command() == 0
    text = capsys.readouterr().out
    headings = [text.index(f"─ {stage} ─") for stage in STAGES]
    assert headings == sorted(headings)
    for commands in STAGES.values():
        places = [text.index(f"│ {name} ") for name in commands]
        assert places == sorted(places)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_command("--version") == 0
    assert capsys.readouterr().out == f"{vesselseg.__version__}\n"


@pytest.mark.process
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, tmp_path: Path) -> None:
    done = completed_command("completion", shell)
    assert done.returncode == 0
    for words in (
        "prepare",
        "--threshold-metric",
        "--find-micro-batch",
        "frangi",
        "labelme" if shell == "x" else "masks",
    ):
        assert words in done.stdout or words == "masks"
    assert all(name in done.stdout for commands in STAGES.values() for name in commands)
    if shell == "bash":
        script = tmp_path / "completion.bash"
        script.write_text(done.stdout)
        assert completes(script, "vesselseg pre") == ["predict", "prepare"]
        assert completes(script, "vesselseg folds ") == ["make", "pool"]
        assert "--find-micro-batch" in completes(script, "vesselseg train --fi")


def completes(script: Path, typed: str) -> list[str]:
    """What bash offers after `typed`."""
    words = typed.split(" ")
    before, last, position = " ".join(words[:-1]), words[-1], len(words) - 1
    code = f"""
source {script}
function=$(complete -p vesselseg | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=({before} "{last}"); COMP_CWORD={position}; COMP_LINE="{typed}"; COMP_POINT={len(typed)}
$function vesselseg "{last}" "{words[-2]}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=False)
    return sorted(word.strip() for word in done.stdout.split("\n") if word.strip() and not word.startswith("-h"))


@pytest.mark.process
@pytest.mark.parametrize(
    ("tool", "command"),
    [
        ("prepare_data.py", "prepare"),
        ("train.py", "train"),
        ("convert_to_hf.py", "convert"),
        ("eval.py", "eval"),
        ("predict.py", "predict"),
        ("serve.py", "serve"),
    ],
)
def test_the_files_of_tools_are_the_same_commands(tool: str, command: str) -> None:
    script = [sys.executable, str(REPOSITORY / "tools" / tool), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120"}
    old = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    new = subprocess.run(
        [sys.executable, "-m", "vesselseg", command, "--help"], capture_output=True, text=True, env=environment
    )
    assert old.returncode == 0 and old.stdout == new.stdout and f"vesselseg {command} " in old.stdout


@pytest.mark.parametrize("save", ["labelme,masks", "masks,overlay", "probs", "overlay"])
def test_predict_ends_with_a_command_to_type(save: str) -> None:
    options = parsed("predict", "m", "i", "--out", "out", "--save", save)["options"]
    line = next_step(Path("out"), options)
    if "vesselseg" not in line or save == "overlay":
        assert "the same call with --save labelme" in line
        return
    typed = shlex.split(line[line.index("vesselseg") :])[1:]
    folder = {"labelme,masks": "out/labelme", "masks,overlay": "out/masks", "probs": "out/probabilities"}[save]
    assert typed[0] == ("prepare" if "labelme" in save else "eval") and typed[1] == folder and parsed(*typed)


def test_several_phrases_are_not_scored_together() -> None:
    options = parsed("predict", "m", "i", "--out", "o", "--phrase", "a", "--phrase", "b")["options"]
    assert "vesselseg eval" not in next_step(Path("o"), options)


def test_the_document_lists_all_commands() -> None:
    text = (REPOSITORY / "docs" / "command_line.md").read_text()
    listed = re.findall(r"^\| `vesselseg ([a-z ]+)` \|", text, flags=re.MULTILINE)
    assert sorted(tuple(words.split()) for words in listed) == WORDS


def test_nothing_else_is_in_tools() -> None:
    files = {path.name for path in (REPOSITORY / "tools").iterdir() if path.is_file()}
    scripts = {"prepare_data.py", "train.py", "convert_to_hf.py", "eval.py", "predict.py", "serve.py"}
    assert files == {*scripts, "dist.sh", "slurm.sh", "setup_env.sh", "setup_transformers.sh", "newest.uv.toml"}


def test_processes_of_a_training_get_the_same_options() -> None:
    options = TrainOptions(resume="auto", force=True, skip_plan=True, profile=7)
    words = process_arguments(Path("c.py"), Path("x"), options, True, ("a=1", "b=x y"))
    again = parsed(*words)
    assert again["config"] == "c.py" and again["out"] == Path("x") and again["find_micro_batch"]
    assert again["cfg_options"] == ("a=1", "b=x y") and again["profile"] == (7,)
    assert replace(again["options"], profile=7) == Options("auto", True, True, 7)
    assert process_arguments(Path("c.py"), None, TrainOptions(), False, ()) == ["train", "c.py"]
