"""Tables of an evaluation for a paper: report.md with conventions as footnotes, table.tex for LaTeX with booktabs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vesselseg.evaluation.metrics import EMPTY_MASK_RULE, METRIC_TABLE
from vesselseg.evaluation.result_types import Evaluation
from vesselseg.reports.report_text import (
    KEY_METRICS,
    bootstrap_sentence,
    calibration_rows,
    calibration_warning,
    figure,
    interval,
    item_noun,
    label,
    metric_digits,
    metric_groups,
    option_label,
    own_threshold_sentence,
    setting_sentences,
    summary_interval,
    summary_sentence,
)

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": r"\textendash{}",
}


def markdown(evaluation: Evaluation, about: Sequence[tuple[str, str]]) -> str:
    """The report as Markdown with footnotes. about: (label, value) of its settings."""
    return "\n".join(_markdown(evaluation, about)) + "\n"


def _markdown(evaluation: Evaluation, about: Sequence[tuple[str, str]]) -> Iterator[str]:
    source, data = _cell(evaluation.source.name), _cell(evaluation.data.name)
    yield f"# Evaluation of {source} on {data}, split {evaluation.split}\n"
    yield f"{summary_sentence(evaluation)} {setting_sentences(evaluation)}\n"
    yield from (f"> {warning}\n" for warning in evaluation.warnings)
    yield from _markdown_metrics(evaluation)
    yield from _markdown_thresholds(evaluation)
    yield from _markdown_calibration(evaluation)
    yield from _markdown_ablations(evaluation)
    yield from _markdown_subgroups(evaluation)
    yield "## How it was measured\n"
    yield from _table(("", ""), about)


def _markdown_metrics(evaluation: Evaluation) -> Iterator[str]:
    notes: dict[str, int] = {}  # convention -> number of its footnote, in order of first use
    rows = []
    for group in metric_groups():
        for name in group.names:
            metric, summary = METRIC_TABLE[name], evaluation.summary[name]
            note = f"[^{notes.setdefault(metric.convention, len(notes) + 1)}]" if metric.convention else ""
            digits = metric_digits(name)
            rows.append(
                (
                    group.title if name == group.names[0] else "",
                    f"{label(name, evaluation)} {'↓' if metric.lower_is_better else '↑'}{note}",
                    figure(summary.mean, digits),
                    summary_interval(name, summary),
                    figure(summary.median, digits),
                    str(summary.items),
                )
            )
    yield "## Metrics\n"
    yield f"Mean over {item_noun(evaluation)}; {bootstrap_sentence(evaluation)}."
    yield "↑ higher is better, ↓ lower is better."
    yield f"n: {item_noun(evaluation)} for which the metric is defined, of {len(evaluation.items)}.\n"
    yield from _table(("", "Metric", "Mean", "95 % interval", "Median", "n"), rows, numbers=range(2, 6))
    yield from (f"[^{number}]: {note[0].upper()}{note[1:]}." for note, number in notes.items())
    yield f"\n{EMPTY_MASK_RULE}\n"


def _markdown_thresholds(evaluation: Evaluation) -> Iterator[str]:
    searched = evaluation.threshold.searched
    if not evaluation.thresholds or searched is None:
        return
    rows = [
        (
            label(one.metric, evaluation),
            f"{one.threshold:.2f}",
            figure(one.reported_value, metric_digits(one.metric) + 1),
            f"{one.reported_best_threshold:.2f}",
            figure(one.reported_best, metric_digits(one.metric) + 1),
            figure(one.loss, metric_digits(one.metric) + 1),
        )
        for one in evaluation.thresholds
    ]
    here = evaluation.split
    yield "## Best threshold for each metric\n"
    chosen, own = f"Threshold from {searched.split}", f"Threshold from {here}"
    heads = ("Metric", chosen, f"value on {here}", own, f"best value on {here}", "Loss")
    yield from _table(heads, rows, numbers=range(1, 6))


def _markdown_calibration(evaluation: Evaluation) -> Iterator[str]:
    calibration = evaluation.calibration
    if calibration is None:
        return
    yield "## Calibration\n"
    if calibration.temperature is not None:
        yield f"Temperature {figure(calibration.temperature)}, fitted on {calibration.fitted_on}.\n"
    warning = calibration_warning(calibration)
    if warning:
        yield f"> {warning}\n"
    rows = [
        (name, which, figure(before, 4), figure(after, 4))
        for which, name, before, after in calibration_rows(calibration)
    ]
    yield from _table(("", "Pixels", "Before", "With temperature"), rows, numbers=(2, 3))


def _markdown_ablations(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.ablations:
        return
    yield "## Ablations\n"
    if own_threshold_sentence(evaluation):
        yield f"{own_threshold_sentence(evaluation)}\n"
    rows = [
        (
            option_label(one.option, evaluation),
            label(one.metric, evaluation),
            figure(one.means[0], metric_digits(one.metric)),
            figure(one.means[1], metric_digits(one.metric)),
            figure(one.difference, metric_digits(one.metric) + 1, sign=True),
            interval(one.low, one.high, metric_digits(one.metric) + 1, sign=True),
        )
        for one in evaluation.ablations
        if one.metric in (*KEY_METRICS, "betti_0_error")
    ]
    heads = ("Option", "Metric", "Without", "With", "Difference", "95 % interval")
    yield from _table(heads, rows, numbers=range(2, 6))


def _markdown_subgroups(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.subgroups:
        return
    yield "## Subgroups\n"
    rows = [
        (
            f"{one.column} = {one.value}",
            str(one.items),
            str(one.groups),
            *(
                f"{figure(one.summary[name].mean, metric_digits(name))} ({summary_interval(name, one.summary[name])})"
                for name in KEY_METRICS
            ),
        )
        for one in evaluation.subgroups
    ]
    heads = ("Subgroup", "Items", "Groups", *(label(name, evaluation) for name in KEY_METRICS))
    yield from _table(heads, rows, numbers=range(1, len(heads)))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> Iterator[str]:
    """A Markdown table; numbers: indices of right-aligned columns."""
    yield f"| {' | '.join(map(_cell, heads))} |"
    yield f"|{'|'.join('---:' if column in numbers else '---' for column in range(len(heads)))}|"
    yield from (f"| {' | '.join(map(_cell, row))} |" for row in rows)
    yield ""


def _cell(text: str) -> str:
    """Text with Markdown characters escaped, on one line."""
    return re.sub(r"([\\|*_<>`])", r"\\\1", " ".join(text.split()))


def latex(evaluation: Evaluation) -> str:
    r"""A table environment for ``\usepackage{booktabs}``, followed by a paragraph of numbered conventions."""
    return "\n".join(_latex(evaluation)) + "\n"


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return escaped.replace("--", "-{}-")  # LaTeX sets two hyphens as a dash


def _latex(evaluation: Evaluation) -> Iterator[str]:
    notes: dict[str, int] = {}
    name = f"{evaluation.source.name} on {evaluation.data.name}, split {evaluation.split}"
    place = f"tab:{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}"
    yield r"% needs \usepackage{booktabs}; the conventions are a separate paragraph after the table"
    yield r"\begin{table}"
    yield r"\centering\footnotesize"
    yield rf"\caption{{{latex_text(_caption(evaluation, name))}}}"
    yield rf"\label{{{place}}}"
    yield r"\begin{tabular}{lrrr}"
    yield r"\toprule"
    yield r"Metric & Mean & 95\,\% interval & $n$ \\"
    for group in metric_groups():
        yield r"\midrule"
        yield rf"\multicolumn{{4}}{{l}}{{\emph{{{latex_text(group.title)}}}}} \\"
        yield from (_latex_row(evaluation, metric, notes) for metric in group.names)
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"\end{table}"
    yield rf"{{\footnotesize\noindent Conventions of Table~\ref{{{place}}}."
    for note, number in notes.items():
        yield rf"\textsuperscript{{{number}}} {latex_text(note[0].upper() + note[1:])}."
    yield rf"{latex_text(EMPTY_MASK_RULE)}\par}}"


def _caption(evaluation: Evaluation, name: str) -> str:
    means = f"{name}: mean over {len(evaluation.items)} {item_noun(evaluation)}"
    groups = f" of {evaluation.groups} groups" if evaluation.grouped else ""
    return f"{means}{groups}. {bootstrap_sentence(evaluation)}. {setting_sentences(evaluation)}"


def _latex_row(evaluation: Evaluation, name: str, notes: dict[str, int]) -> str:
    metric, summary = METRIC_TABLE[name], evaluation.summary[name]
    number = notes.setdefault(metric.convention, len(notes) + 1) if metric.convention else None
    mark = "" if number is None else rf"\textsuperscript{{{number}}}"
    arrow = r"$\downarrow$" if metric.lower_is_better else r"$\uparrow$"
    cells = (
        rf"\quad {latex_text(label(name, evaluation))} {arrow}{mark}",
        latex_text(figure(summary.mean, metric_digits(name))),
        latex_text(summary_interval(name, summary)),
        str(summary.items),
    )
    return " & ".join(cells) + r" \\"
