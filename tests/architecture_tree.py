"""The generated parts of docs/architecture.md: the tree of the package, and the table of import rules.

`python -m tests.architecture_tree` rewrites both; tests/test_docs.py checks that they are up to date.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.import_rules import DATASET_FILES, LEAVES, NO_TORCH, REPOSITORY, RULES, TRAINING_ONLY, Rule

PACKAGE = REPOSITORY / "vesselseg"
DOCUMENT = REPOSITORY / "docs" / "architecture.md"
COLUMN = 34  # where the description of a module starts


def first_line(module: Path) -> str:
    """First line of a module's docstring, without the final period."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    assert docstring, f"{module} has no docstring"
    return docstring.partition("\n")[0].removesuffix(".")


def entries(folder: Path, indent: str = "  ") -> Iterator[tuple[str, str]]:
    """(indented name, description) of the modules of a folder, then of its packages and their modules."""
    for module in sorted(folder.glob("*.py")):
        if module.name != "__init__.py":
            yield f"{indent}{module.name}", first_line(module)
    for package in sorted(init.parent for init in folder.glob("*/__init__.py")):
        yield f"{indent}{package.name}/", first_line(package / "__init__.py")
        yield from entries(package, indent + "  ")


def render_tree() -> str:
    """The package as a fenced block, one line per module."""
    top = f"{'vesselseg/':{COLUMN}}{first_line(PACKAGE / '__init__.py')}"
    lines = [f"{name:{COLUMN - 1}} {description}" for name, description in entries(PACKAGE)]
    return "\n".join(["```", top, *lines, "```"])


def short(module: str) -> str:
    return f"`{module.removeprefix('vesselseg.')}`"


def names(modules: tuple[str, ...]) -> str:
    return ", ".join("the package" if module == "vesselseg" else short(module) for module in modules)


def allowed(rule: Rule) -> str:
    """What a room may import, with the two groups of modules that have a name."""
    named, words = rule.may, []
    for group, name in ((LEAVES, "leaf modules"), (DATASET_FILES, "dataset files")):
        if set(group) <= set(named):
            words.append(name)
            named = tuple(module for module in named if module not in group)
    return ", ".join([*words, *([names(named)] if named else [])]) or "nothing"


def forbidden(rule: Rule) -> str:
    if rule.may_not == NO_TORCH:
        return "torch, training framework"
    return "training framework" if rule.may_not == TRAINING_ONLY else ", ".join(rule.may_not)


def render_rules() -> str:
    """The import rules as a table; rooms with the same rule share a row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for room, rule in RULES.items():
        rows.setdefault((allowed(rule), forbidden(rule)), []).append(room)
    lines = [f"| {', '.join(map(short, rooms))} | {may} | {may_not} |" for (may, may_not), rooms in rows.items()]
    groups = (
        f"- Leaf modules: {names(LEAVES)}.",
        f"- Dataset files: {names(DATASET_FILES)}.",
        f"- Training framework: {', '.join(TRAINING_ONLY)}.",
    )
    return "\n".join(["| room | may import | may not import |", "|---|---|---|", *lines, "", *groups])


def with_generated_parts(text: str) -> str:
    """A document with what stands between its markers replaced."""
    for part, content in (("tree", render_tree()), ("import rules", render_rules())):
        begin, end = f"<!-- {part}: python -m tests.architecture_tree -->\n\n", f"\n\n<!-- end of {part} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        assert rest and after, f"{DOCUMENT} lacks the markers of {part}"
        text = before + begin + content + end + after
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(with_generated_parts(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
