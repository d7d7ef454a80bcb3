"""Write the table of methods on the same images: methods.html with links to every report, methods.md for a paper."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselseg.evaluation.comparison import Comparison
from vesselseg.evaluation.metrics import METRIC_TABLE
from vesselseg.evaluation.results_file import RESULTS_FILE, versions
from vesselseg.reports.comparison_report import interval, p_text, verdict, write_comparison
from vesselseg.reports.evaluation_report import REPORT_FILE
from vesselseg.reports.html import render

TABLE_PAGE, TABLE_MARKDOWN = "methods.html", "methods.md"
SHOWN = ("dice", "cldice", "precision", "recall", "hd95", "betti_0_error")


@dataclass(frozen=True)
class Row:
    """One method."""

    name: str
    source: str  # path of its model or predictions
    threshold: str  # value and origin, as text
    unit: str  # of lengths, "px" or "mm"
    items: int
    summary: dict[str, dict[str, Any]]  # metric -> mean, low, high, items, ...
    report: str | None  # its page, relative to the table's


def write_methods(comparison: Comparison, folders: Sequence[Path], out: Path, notes: Sequence[str] = ()) -> Path:
    """Write table and paired comparison into out, replacing earlier ones; return the table's page.

    folders: of results.json and reports, in the comparison's order. notes: sentences above the table.
    """
    rows = [_row(one.name, folder, out) for one, folder in zip(comparison.results, folders)]
    paired = write_comparison(comparison, out / "comparison", force=True)
    (out / TABLE_MARKDOWN).write_text(
        "\n".join([*markdown_lines(comparison, rows), *(f"\n{note}" for note in notes)]) + "\n", encoding="utf-8"
    )
    page = render(
        "methods.html.j2",
        comparison=comparison,
        rows=rows,
        pairs=_pairs(comparison),
        notes=notes,
        shown=columns(rows, SHOWN),
        metrics=columns(rows, METRIC_TABLE),
        table=METRIC_TABLE,
        heading=heading,
        value=value,
        interval_text=interval_text,
        is_best=is_best,
        paired=paired.relative_to(out).as_posix(),
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
    )
    (out / TABLE_PAGE).write_text(page, encoding="utf-8")
    return out / TABLE_PAGE


def markdown_lines(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """The table and the paired differences as Markdown."""
    names = columns(rows, SHOWN)
    first = comparison.results[0]
    lines = [
        f"Split {first.split}, {len(comparison.keys)} items, data {first.fingerprint}; mean, 95 % bootstrap interval.",
        "",
        "| method | threshold | " + " | ".join(heading(name, rows) for name in names) + " |",
        "|" + "---|" * (len(names) + 2),
    ]
    for row in rows:
        cells = []
        for name in names:
            mean = f"**{value(row, name)}**" if is_best(row, name, rows) else value(row, name)
            between = interval_text(row, name)
            cells.append(f"{mean} ({between})" if between else mean)
        lines.append(f"| {row.name} | {row.threshold} | " + " | ".join(cells) + " |")
    metric = METRIC_TABLE[comparison.metric].label if comparison.metric in METRIC_TABLE else comparison.metric
    lines += ["", f"| {metric}, paired | difference | 95 % interval | p (Wilcoxon) | p (Holm) | wins / ties / losses |"]
    lines.append("|" + "---|" * 6)
    for pair in _pairs(comparison):
        one = pair["metric"]
        lines.append(
            f"| {pair['first']} - {pair['second']} | {one.difference:+.4f} | {interval(one)} | "
            f"{p_text(one.p_reported)} | {pair['adjusted']} | {one.wins} / {one.ties} / {one.losses} |"
        )
    return lines


def columns(rows: Sequence[Row], names: Sequence[str] | dict[str, Any]) -> list[str]:
    """The metrics of which some row has a mean."""
    return [name for name in names if any(_mean(row, name) is not None for row in rows)]


def heading(name: str, rows: Sequence[Row]) -> str:
    """A metric's name with its unit."""
    metric = METRIC_TABLE[name]
    return f"{metric.label} [{rows[0].unit}]" if metric.unit == "px/mm" else metric.label


def value(row: Row, name: str) -> str:
    """A mean as text, with its number of items where some have no value."""
    mean = _mean(row, name)
    if mean is None:
        return "-"
    items = row.summary[name].get("items", row.items)
    return _number(mean, name) + (f" (of {items})" if items < row.items else "")


def interval_text(row: Row, name: str) -> str:
    """The interval of a mean as text; empty for a single group."""
    low, high = (row.summary.get(name, {}).get(end) for end in ("low", "high"))
    return "" if low is None or high is None else f"{_number(low, name)} to {_number(high, name)}"


def is_best(row: Row, name: str, rows: Sequence[Row]) -> bool:
    """Whether no row has a better mean."""
    means = [mean for other in rows if (mean := _mean(other, name)) is not None]
    best = min(means) if METRIC_TABLE[name].lower_is_better else max(means)
    return _mean(row, name) == best


def _row(name: str, folder: Path, out: Path) -> Row:
    content = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    report = folder / REPORT_FILE
    masks = content["source"]["kind"] == "masks"
    choice = content["threshold"]
    return Row(
        name=name,
        source=content["source"]["path"],
        threshold="masks" if masks else f"{choice['value']:.2f}, {choice['origin']}",
        unit=content.get("length_unit", "px"),
        items=len(content["items"]),
        summary=content["summary"],
        report=Path(os.path.relpath(report, out)).as_posix() if report.exists() else None,
    )


def _pairs(comparison: Comparison) -> list[dict[str, Any]]:
    names = [one.name for one in comparison.results]
    return [
        {
            "first": names[pair.first],
            "second": names[pair.second],
            "metric": pair.chosen,
            "interval": interval(pair.chosen),
            "p": p_text(pair.chosen.p_reported),
            "adjusted": "-" if len(comparison.pairs) < 2 else p_text(pair.p_adjusted),
            "verdict": verdict(pair.chosen, names[pair.first], names[pair.second]),
        }
        for pair in comparison.pairs
    ]


def _mean(row: Row, name: str) -> float | None:
    mean: float | None = row.summary.get(name, {}).get("mean")
    return mean


def _number(number: float, name: str) -> str:
    return f"{number:.3f}" if METRIC_TABLE[name].unit == "" else f"{number:.1f}"
