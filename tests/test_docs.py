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
    "docs/data.md",
    "docs/distilling.md",
    "docs/evaluation.md",
    "docs/memory_plan.md",
    "docs/predicting.md",
    "docs/results.md",
    "docs/service.md",
    "docs/weights.md",
)


# What the files of tools/ that documents name start.
TOOLS = {"dist.sh train": "train", "slurm.sh": "train", "convert_to_hf.py": "convert", "prepare_data.py": "prepare"}
TOOLS |= {f"{name}.py": name for name in ("train", "eval", "predict", "serve")}
SCRIPTS = re.compile(rf"tools/({'|'.join(map(re.escape, TOOLS))})")
TAKEN = {words: names_of(app) for words, app in all_commands()}


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
def test_commands_name_files_and_options_that_exist(document: str) -> None:
    wrong = []
    for command in commands(document):
        files = re.findall(r"\b((?:tools|configs)/[\w./]+)", command)
        wrong += [f"{command}: no {name}" for name in files if not (REPOSITORY / name).is_file()]
        wrong += [f"{command}: no option {option}" for option in unknown_options(command)]
    assert wrong == []


def unknown_options(line: str) -> set[str]:
    """Options of a shell command that the command of vesselseg in it, or the file of tools/, does not take."""
    words = SCRIPTS.sub(lambda found: f"vesselseg {TOOLS[found[1]]}", line).split()
    if "vesselseg" not in words:
        return set()
    words = words[words.index("vesselseg") + 1 :]
    names = next((TAKEN[known] for length in (2, 1) if (known := tuple(words[:length])) in TAKEN), None)
    assert names is not None or words[0].startswith("-"), f"{line}: no such command"
    return (
        {word.partition("=")[0] for word in words if word.startswith("--")} - (names or set()) - {"--help", "--version"}
    )


def test_unknown_options_are_noticed() -> None:
    assert unknown_options("vesselseg eval m --data d --outt x") == {"--outt"}
    assert unknown_options("bash tools/dist.sh train c 4 --work-dir x --lr 3") == {"--lr"}
    assert unknown_options("python tools/convert_to_hf.py a --save-path x") == set()
    with pytest.raises(AssertionError, match="no such command"):
        unknown_options("vesselseg evaluate m")


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
