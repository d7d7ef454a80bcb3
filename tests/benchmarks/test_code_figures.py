"""benchmarks/code_figures.py: figures of small sources counted by hand."""

from __future__ import annotations

import ast
from pathlib import Path

from benchmarks.code_figures import figures, functions_of, line_counts, once_used, repeated, rooms, table

SOURCE = '''"""A docstring is no code.

# nor is this a comment
"""

# one comment line
from __future__ import annotations

LIMIT = 3  # one comment after code
"""What it is."""


def public(values):
    """Text."""
    return _once(values) + _twice(values) + _twice(values)


def _once(values):
    """Text."""
    total = 0
    for value in values:
        total += value
    return total


def _twice(numbers):
    count = 0
    for number in numbers:
        count += number
    return count
'''


def test_lines_of_code_and_comments() -> None:
    assert line_counts(SOURCE) == (14, 1, 1)


def test_helpers_used_once_and_repeated_statements() -> None:
    functions = functions_of([ast.parse(SOURCE)])
    assert len(functions) == 3
    assert once_used([ast.parse(SOURCE)], functions) == 1
    assert repeated(functions) == 1  # _once and _twice differ in names only
    assert repeated(functions[:2]) == 0


def test_figures_of_a_checkout(tmp_path: Path) -> None:
    room = tmp_path / "vesselseg" / "room"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text('"""A room."""\n')
    (room / "one.py").write_text(
        "from vesselseg.room import two\n\n\nclass Shown:\n    pass\n\n\nclass _Hidden:\n    pass\n"
    )
    (room / "two.py").write_text("# why\nfrom vesselseg.room import one\n")
    found = figures(tmp_path)
    assert (found["files"], found["lines"], found["lines of code"]) == (3, 12, 6)
    assert found["comment lines per 100 lines of code"] == round(100 / 6, 1)
    assert (found["import circles between modules"], found["import circles between rooms"]) == (1, 0)
    assert (found["public classes"], found["longest file, lines"]) == (1, 9)
    assert rooms(tmp_path) == {"room": round(100 / 6, 1)}
    assert table(["a", "b"], [found, {"files": 1200}]).splitlines()[2] == "| files | 3 | 1,200 |"
