"""Figures of the package's source code: size, comments, import circles, repeated statements.

usage: python benchmarks/code_figures.py [ROOT ...] [--rooms]

ROOT: checkouts to compare, one column each (default: this one). --rooms: comment lines per room instead. Nothing is
imported from a checkout; its files are parsed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import io
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.import_rules import circles, package_imports, room_imports

PACKAGE = "vesselseg"
WINDOW = 3  # consecutive statements that count as repeated; shorter ones are alike by chance
Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, default=[Path(__file__).resolve().parents[1]])
    parser.add_argument("--rooms", action="store_true", help="comment lines per 100 lines of code, room by room")
    args = parser.parse_args()
    measured = [rooms(root) if args.rooms else figures(root) for root in args.roots]
    print(table([root.resolve().name for root in args.roots], measured))


def figures(root: Path) -> dict[str, float]:
    """Every figure of one checkout by its label."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted((root / PACKAGE).rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    functions = functions_of(trees.values())
    counted = [line_counts(text) for text in sources.values()]
    code, comments, trailing = (sum(column) for column in zip(*counted))
    edges = package_imports(root)
    private = once_used(trees.values(), functions)
    return {
        "files": len(sources),
        "lines": sum(text.count("\n") for text in sources.values()),
        "lines of code": code,
        "comment lines per 100 lines of code": round(100 * comments / max(1, code), 1),
        "comments after code per 100 lines of code": round(100 * trailing / max(1, code), 1),
        "longest file, lines": max((text.count("\n") for text in sources.values()), default=0),
        "import circles between modules": len(circles(edges)),
        "import circles between rooms": len(circles(room_imports(edges))),
        f"repeated runs of {WINDOW} statements": repeated(functions),
        "public classes": sum(is_public(node) for tree in trees.values() for node in tree.body if is_class(node)),
        "functions": len(functions),
        "private helpers used once": private,
        "of all functions, %": round(100 * private / max(1, len(functions)), 1),
    }


def functions_of(trees: Iterable[ast.Module]) -> list[Function]:
    """All functions and methods, nested ones included."""
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, Function)]


def rooms(root: Path) -> dict[str, float]:
    """Comment lines per 100 lines of code of every folder of the package."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for path in sorted((root / PACKAGE).rglob("*.py")):
        room = path.relative_to(root / PACKAGE).parts[0]
        code, comments, _ = line_counts(path.read_text(encoding="utf-8"))
        counts[room][0] += code
        counts[room][1] += comments
    return {room: round(100 * comments / max(1, code), 1) for room, (code, comments) in counts.items()}


def line_counts(text: str) -> tuple[int, int, int]:
    """(lines of code, comment lines, comments after code); docstrings are none of them."""
    code: set[int] = set()
    comments: set[int] = set()
    docstrings = docstring_lines(ast.parse(text))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in _NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings), len(comments - code), len(comments & code)


def docstring_lines(tree: ast.Module) -> set[int]:
    """Line numbers of every string that stands as a statement: docstrings, also those of constants."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and is_text(node):
            found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def is_class(node: ast.stmt) -> bool:
    """Whether a statement defines a class."""
    return isinstance(node, ast.ClassDef)


def is_public(node: Any) -> bool:
    """Whether a definition's name has no leading underscore."""
    return not node.name.startswith("_")


def once_used(trees: Iterable[ast.Module], functions: Sequence[Function]) -> int:
    """Private functions and methods whose name is used exactly once in the package, dunder methods aside.

    Names are counted over all files; two helpers of one name in two files, each used once, count as used once.
    """
    uses = Counter(name for tree in trees for name in used_names(tree))
    helpers = Counter(one.name for one in functions if not is_public(one) and not one.name.endswith("__"))
    return sum(number for name, number in helpers.items() if uses[name] == number)


def used_names(tree: ast.Module) -> Iterator[str]:
    """Every name and attribute that the code reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def repeated(functions: Sequence[Function]) -> int:
    """Runs of WINDOW statements in functions that occur somewhere else too, whatever the variables are called."""
    windows: Counter[str] = Counter()
    for function in functions:
        local = local_names(function)
        windows.update(window for block in blocks(function) for window in normalised_windows(block, local))
    return sum(number - 1 for number in windows.values())


def blocks(function: Function) -> Iterator[list[ast.stmt]]:
    """The lists of statements of a function, nested ones included, those of functions inside it left to them."""
    waiting: list[ast.AST] = [function]
    while waiting:
        node = waiting.pop()
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                block = [
                    one for one in statements if not isinstance(one, (*FUNCTIONS, ast.ClassDef)) and not is_text(one)
                ]
                yield block
                waiting += block
        waiting += getattr(node, "handlers", [])


def local_names(function: Function) -> set[str]:
    """Arguments and variables of a function."""
    nodes = list(ast.walk(function))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names | {node.arg for node in nodes if isinstance(node, ast.arg)}


def normalised_windows(block: Sequence[ast.stmt], local: set[str]) -> Iterator[str]:
    """Every run of WINDOW statements as text, with local names numbered in the order in which they occur."""
    for start in range(len(block) - WINDOW + 1):
        numbers: dict[str, str] = {}
        module = copy.deepcopy(ast.Module(body=list(block[start : start + WINDOW]), type_ignores=[]))
        for node in ast.walk(module):
            if isinstance(node, ast.Name) and node.id in local:
                node.id = numbers.setdefault(node.id, f"v{len(numbers)}")
        yield ast.dump(module)


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def table(names: Sequence[str], columns: Sequence[Mapping[str, float]]) -> str:
    """Markdown: one row per figure, one column per checkout; empty where a checkout lacks it."""
    labels = dict.fromkeys(label for column in columns for label in column)
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {label} | {' | '.join(f'{one[label]:,}' if label in one else '' for one in columns)} |" for label in labels
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
