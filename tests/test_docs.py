"""The documents name files, commands and options that exist, in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import architecture_tree
from tests.cli.commands import all_commands, names_of

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    "README.md",
    "README.zh-CN.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/cine.md",
    "docs/configuration.md",
    "docs/data.md",
    "docs/distilling.md",
    "docs/evaluation.md",
    "docs/extending.md",
    "docs/installation.md",
    "docs/memory_plan.md",
    "docs/predicting.md",
    "docs/results.md",
    "docs/service.md",
    "docs/training.md",
    "docs/weights.md",
    "examples/README.md",
    "benchmarks/README.md",
)

COMMANDS = dict(all_commands())
GROUPS = {words[:1] for words in COMMANDS}
SCRIPTS = {"dist.sh train": "train", "slurm.sh": "train"} | {
    path.name: re.findall(r'main\(\["(\w+)"', path.read_text(encoding="utf-8"))[0]
    for path in (REPOSITORY / "tools").glob("*.py")
}


def text_of(document: str) -> str:
    return (REPOSITORY / document).read_text(encoding="utf-8")


def code_blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of one language ("" for those without)."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [content for name, content in blocks if name == language]


def commands(document: str) -> list[str]:
    """Shell commands of a document, continued lines joined, comments left out."""
    lines = "\n".join(code_blocks(text_of(document), "bash")).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def inline_commands(document: str) -> list[str]:
    """Commands in the text of a document."""
    return re.findall(r"`(vesselseg [a-z][^`]*|bash tools/[^`]*)`", text_of(document).replace("\n", " "))


def words_of(line: str) -> tuple[str, ...]:
    """The words that name the command which a line starts; () for another program."""
    if called := re.search(r"(?:^|\s)vesselseg ([a-z]+)(?: (\w+))?", line):
        word, inner = (called[1],), called.groups()
        only_inner = word in GROUPS and word not in COMMANDS and called[2]
        return inner if inner in COMMANDS or only_inner else word
    if script := re.search(r"\btools/(dist\.sh train|slurm\.sh|\w+\.py)", line):
        return (SCRIPTS.get(script[1], script[1]),)
    return ()


def command_problems(line: str) -> list[str]:
    """What a command line names that does not exist."""
    words = words_of(line)
    if not words or (words in GROUPS and "--" not in line):
        return []
    if words not in COMMANDS:
        return [f"{line}: no {' '.join(words)}"]
    options = re.findall(r"(?<!\S)\[?(--[a-z][\w-]*)", line.split("-m vesselseg")[-1])
    return [f"{line}: no {option}" for option in options if option not in names_of(COMMANDS[words]) | {"--help"}]


def indented_paths(block: str) -> list[str]:
    """Paths of the first column of an indented tree; a line may name several files, and patterns."""
    paths: list[str] = []
    parents: list[str] = []
    for indent, names in re.findall(r"^( *)(\S.*?)(?:  |$)", block, flags=re.MULTILINE):
        above = parents[: len(indent) // 2]
        for name in names.split(", "):
            parents = [*above, name.strip("/")]
            paths.append("/".join(parents))
    return paths


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", text_of(document))
    folder = (REPOSITORY / document).parent
    assert [target for target in targets if "://" not in target and not (folder / target).exists()] == []


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
def test_the_tree_names_what_exists(document: str) -> None:
    paths = indented_paths(next(block for block in code_blocks(text_of(document), "") if "vesselseg/" in block))
    assert [path for path in paths if not any(REPOSITORY.glob(path))] == []
    rooms = {
        f"vesselseg/{path.name}" for path in (REPOSITORY / "vesselseg").iterdir() if (path / "__init__.py").exists()
    }
    assert rooms - set(paths) == set()


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
def test_commands_name_files_that_exist(document: str) -> None:
    files = {name for command in commands(document) for name in re.findall(r"\b((?:tools|configs)/[\w./]+)", command)}
    assert files
    assert [name for name in sorted(files) if not (REPOSITORY / name).is_file()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_options_exist(document: str) -> None:
    lines = [*commands(document), *inline_commands(document)]
    assert [problem for line in lines for problem in command_problems(line)] == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("vesselseg evaluate m", "evaluate"),
        ("vesselseg eval m --data d --outt x", "--outt"),
        ("vesselseg folds mak a", "folds mak"),
        ("python tools/evil.py a", "evil.py"),
        ("torchrun --nproc-per-node 4 -m vesselseg predict a b --ot c", "--ot"),
        ("bash tools/dist.sh train CONFIG 4 --work-dir x --lr 3", "--lr"),
    ],
)
def test_a_command_or_option_that_does_not_exist_is_found(line: str, problem: str) -> None:
    assert [found.rpartition(": no ")[2] for found in command_problems(line)] == [problem]


@pytest.mark.parametrize(
    "line", ["python tools/convert_to_hf.py a --save-path x", "vesselseg --help", "hf download a --b"]
)
def test_commands_that_exist_and_other_programs_are_accepted(line: str) -> None:
    assert command_problems(line) == []


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
def test_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`|=\S+ )make ([a-z-]+)", text_of(document), flags=re.MULTILINE))
    assert named and named <= targets


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
def test_every_config_is_listed(document: str) -> None:
    configs = REPOSITORY / "configs"
    leaves = {
        path.relative_to(configs).as_posix() for folder in ("", "baselines") for path in (configs / folder).glob("*.py")
    }
    listed = text_of(document).split("| `tiny_cpu.py` |")[1].split("\n\n")[0]
    assert leaves == {"tiny_cpu.py", *re.findall(r"`((?:baselines/)?\w+\.py)`", listed)}


def test_both_languages_give_the_same_commands() -> None:
    for language in ("bash", "python"):
        english, chinese = (code_blocks(text_of(name), language) for name in ("README.md", "README.zh-CN.md"))
        assert english and english == chinese


def test_tree_and_import_table_of_the_architecture_are_up_to_date() -> None:
    text = text_of("docs/architecture.md")
    assert text == architecture_tree.with_generated_parts(text), "run python -m tests.architecture_tree"


def test_the_tree_of_the_architecture_has_every_module_and_paths_outside_the_package_exist() -> None:
    package, outside, *_ = code_blocks(text_of("docs/architecture.md"), "")
    modules = [path for path in (REPOSITORY / "vesselseg").rglob("*.py") if path.name != "__init__.py"]
    assert len(re.findall(r"^ *\w+\.py +\S", package, flags=re.MULTILINE)) == len(modules)
    assert [path for path in indented_paths(outside) if not (REPOSITORY / path).exists()] == []


def test_the_import_table_names_every_room() -> None:
    table = text_of("docs/architecture.md").split("## Who may import whom")[1].split("## ")[0]
    rooms = [path.name for path in (REPOSITORY / "vesselseg").iterdir() if (path / "__init__.py").exists()]
    assert [room for room in rooms if f"`{room}`" not in table] == []
