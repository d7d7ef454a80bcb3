"""Results by subgroup: the values of any column of a table, e.g. view, centre, device.

The table is a CSV file (commas or semicolons) with a column ``image`` (the name below images/) or ``group``; each value
of every other column is a subgroup.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vesselseg.dataset.manifest import Record
from vesselseg.evaluation.errors import EvaluationError, problem_list
from vesselseg.evaluation.result_types import ItemResult, Subgroup
from vesselseg.evaluation.summaries import summarise_items

NOT_GIVEN = "not given"
MOST_VALUES = 20
_KEYS = ("image", "group")


@dataclass(frozen=True)
class SubgroupTable:
    """A table of the user."""

    path: Path
    key: str  # "image" or "group"
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]  # image or group -> column -> value

    def key_of(self, image: str, group: str) -> str:
        """The key of an item in the table; group: the record's, or the image where it has none."""
        return image if self.key == "image" else group

    def check(self, records: Sequence[Record], everything: Sequence[Record]) -> Iterator[str]:
        """Yield warnings; records: of the reported split, everything: of the whole dataset.

        Raises EvaluationError where rows are missing. It also lists rows that match nothing, since usually both are the
        same names in a different spelling.
        """
        known = {self.key_of(record.image, record.group_key) for record in everything}
        needed = dict.fromkeys(self.key_of(record.image, record.group_key) for record in records)
        missing = [f"{name}: no row" for name in needed if name not in self.rows]
        unknown = [f"{name}: a row, but no such {self.key} in the dataset" for name in self.rows if name not in known]
        if missing:
            advice = f"Give every {self.key} of the split a row; an empty cell counts as {NOT_GIVEN!r}."
            raise EvaluationError(problem_list(f"{self.path}: names that do not match", [*missing, *unknown], advice))
        if unknown:
            names = ", ".join(name for name in self.rows if name not in known)
            yield f"{self.path}: {len(unknown)} row(s) match no {self.key} of the dataset: {names[:300]}"
        for column in self.columns:
            count = len({self.rows[name][column] for name in needed})
            if count > MOST_VALUES:
                yield f"{self.path}: column {column} has {count} values, more than {MOST_VALUES}: it is skipped"

    def subgroups(self, items: Sequence[ItemResult], seed: int) -> tuple[Subgroup, ...]:
        """The summary of every subgroup, columns in the table's order, values sorted."""
        found: list[Subgroup] = []
        for column in self.columns:
            by_value: dict[str, list[ItemResult]] = {}
            for item in items:
                by_value.setdefault(self.rows[self.key_of(item.image, item.group)][column], []).append(item)
            if len(by_value) <= MOST_VALUES:
                for value, members in sorted(by_value.items()):
                    groups = len({item.group for item in members})
                    found.append(Subgroup(column, value, len(members), groups, summarise_items(members, seed)))
        return tuple(found)


def read_subgroups(path: Path) -> SubgroupTable:
    """Read a table; raises EvaluationError that lists every problem of it."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: not UTF-8 ({error.reason}); save it as CSV UTF-8") from None
    # Spreadsheets of some countries write semicolons into CSV files.
    header = text.partition("\n")[0]
    lines = list(csv.reader(text.splitlines(), delimiter=";" if header.count(";") > header.count(",") else ","))
    names = [name.strip() for name in lines[0]] if lines else []
    keys = [name for name in _KEYS if name in names]
    columns = tuple(name for name in names if name and name not in _KEYS)
    if not keys or not columns or len(set(columns)) < len(columns):
        raise EvaluationError(
            f"{path}: expected a heading with image or group and at least one other column, each once; "
            f"found {', '.join(names) or 'nothing'}"
        )
    key, rows, problems = keys[0], dict[str, dict[str, str]](), []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        row = {name: cell.strip() for name, cell in zip(names, cells)}
        if len(cells) != len(names):
            problems.append(f"line {number}: {len(cells)} cells, the heading has {len(names)}")
        elif not row[key]:
            problems.append(f"line {number}: no {key}")
        elif row[key] in rows:
            problems.append(f"line {number}: {row[key]} has a row already")
        else:
            rows[row[key]] = {column: row[column] or NOT_GIVEN for column in columns}
    if problems:
        raise EvaluationError(problem_list(f"{path}: unusable lines", problems, "Correct them in the table."))
    return SubgroupTable(Path(path), key, columns, rows)
