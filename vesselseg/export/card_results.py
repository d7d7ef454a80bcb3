"""Evaluation results -> the evaluated model's README.md: a section and the hub's `model-index`.

results.json is read as plain data. The rest of the README is not changed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from vesselseg.errors import UserError
from vesselseg.export.model_card import BEGIN, END
from vesselseg.inference.model_files import weights_digest
from vesselseg.output_folder import replace_text

RESULTS_FILE = "results.json"
CARD_FILE = "README.md"
SHOWN_METRICS = ("dice", "iou", "precision", "recall", "cldice", "nsd", "hd95", "assd", "betti_0_error", "pr_auc")
POOR_DICE = 0.5  # images below it are counted
_TRAINED_ON = re.compile(r"^\| data fingerprint \| `([0-9a-f]+)` \|$", re.MULTILINE)
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)


def add_results(model: Path, results: Path, other_data: bool = False) -> Path:
    """Write an evaluation into the model's card, replacing an earlier one; returns the card's path.

    model: an exported folder. results: results.json or its folder. other_data: accept results on another dataset than
    the training data; the card then says so. Raises UserError for results of another model, on training images or,
    without other_data, on another dataset, as far as model and results allow to check.
    """
    content = read_results(results)
    path = model / CARD_FILE
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a folder written by vesselseg convert") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as a model card: {error}") from None
    trained_on = _TRAINED_ON.search(card.text)
    origin = _check_data(content, trained_on.group(1) if trained_on else None, other_data)
    _check_model(content, model)
    title = _TITLE.search(card.text)
    metadata: Any = card.data
    metadata.model_name = metadata.model_name or (title.group(1) if title else model.resolve().name)
    metadata.eval_results = list(_index(content))
    text = _with_section(card.text, "\n".join([BEGIN, *_section(content, origin), END]))
    replace_text(path, f"---\n{metadata.to_yaml()}\n---\n{text}")
    return path


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results.json; raises UserError if a value that the card needs is missing."""
    file = path / RESULTS_FILE if path.is_dir() else path
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        source, data, threshold = content["source"], content["data"], content["threshold"]
        needed = [source["path"], source["kind"], *(data[key] for key in ("folder", "fingerprint", "split", "images"))]
        needed += [content["created"], content["versions"]["vesselseg"], content["bootstrap"]["unit"]]
        needed += [threshold["origin"], data["groups"], content["warnings"], content["items"][0]["metrics"]]
        needed += [float(threshold["value"]), content["summary"]["dice"]["mean"]]
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; name the --out folder of vesselseg eval") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not valid results of vesselseg eval ({reason}); evaluate the model again") from None
    return content


def _check_model(content: dict[str, Any], model: Path) -> None:
    source = content["source"]
    if source["kind"] != "model":
        raise UserError(f"the results are of {source['path']}, a folder of {source['kind']}, not of a model")
    again = f"evaluate this folder: vesselseg eval {model} --data data/NAME --threshold auto --out DIR"
    weights = source.get("weights")
    if weights is None:
        if Path(source["path"]).resolve() != model.resolve():
            raise UserError(f"the results are of {source['path']}, not of {model}; {again}")
    elif weights != (actual := weights_digest(model)):
        raise UserError(
            f"the results are of {source['path']} with weights {weights}, but {model} has weights {actual}: another "
            f"model, or the checkpoint before its conversion; {again}"
        )


def _check_data(content: dict[str, Any], trained_on: str | None, other_data: bool) -> str:
    """A sentence about the relation of the scored images to the training data."""
    data = content["data"]
    if trained_on is None:
        return "The training data of the model are unknown and may include these images."
    if data["fingerprint"] != trained_on:
        if not other_data:
            raise UserError(
                f"the model was trained on data {trained_on}, the results are of data {data['fingerprint']} "
                f"({data['folder']}); evaluate on the training dataset, or confirm with --other-data"
            )
        return "A different dataset than the training data."
    if data["split"] == "train":
        raise UserError("the results are of the split train, which the model has memorised; score the test split")
    if data["split"] == "val":
        return "Checkpoint and threshold were chosen on this split, so the figures are optimistic."
    return "The dataset of the training, but other images."


def _section(content: dict[str, Any], origin: str) -> Iterator[str]:
    data, threshold = content["data"], content["threshold"]
    groups = content["bootstrap"]["unit"] == "group"
    of_groups = f" of {data['groups']} groups (patients)" if groups else ""
    yield "## Results"
    yield ""
    yield (
        f"Split `{data['split']}` of `{Path(data['folder']).name}`, fingerprint `{data['fingerprint']}`: "
        f"{data['images']} images{of_groups}."
    )
    yield origin
    yield f"Threshold {threshold['value']:.2f}: {threshold['origin']}."
    yield from _test_time_options(content)
    yield ""
    yield from _table(content)
    yield ""
    yield from _limits(content, groups)


def _test_time_options(content: dict[str, Any]) -> Iterator[str]:
    used = [str(content["test_time"])] if content.get("test_time") else []
    used += [f"{name} {size}" for name, size in (content.get("post_processing") or {}).items() if size]
    if used:
        yield f"With {', '.join(used)}, which is not part of the model."


def _table(content: dict[str, Any]) -> Iterator[str]:
    yield "| metric | mean | 95 % interval | median | worst image |"
    yield "|---|---|---|---|---|"
    for name in SHOWN_METRICS:
        row = content["summary"].get(name)
        if row is None or row["mean"] is None:
            continue
        metric = content.get("metrics", {}).get(name, {})
        digits = 1 if metric.get("unit") else 3
        interval = "one group" if row["low"] is None else f"{row['low']:.{digits}f} - {row['high']:.{digits}f}"
        worst = row["maximum"] if metric.get("lower_is_better") else row["minimum"]
        cells = [f"{row['mean']:.{digits}f}", interval, f"{row['median']:.{digits}f}", f"{worst:.{digits}f}"]
        yield f"| {_label(content, name)} | {' | '.join(cells)} |"


def _limits(content: dict[str, Any], groups: bool) -> Iterator[str]:
    """Limits of the figures."""
    values = [item["metrics"]["dice"] for item in content["items"]]
    defined = [value for value in values if isinstance(value, float | int) and math.isfinite(value)]
    poor = sum(value < POOR_DICE for value in defined)
    yield "Limits of these figures:"
    yield ""
    yield f"- {poor} of {len(defined)} images have a Dice below {POOR_DICE}, which the mean does not show."
    yield (
        f"- The intervals cover the sampling of {'patients' if groups else 'images'}, but not other hospitals, devices "
        "or annotators, nor another training."
    )
    yield "- Dice is dominated by wide vessels; clDice and the Betti error measure whether the tree is connected."
    yield from (f"- {warning}" for warning in content["warnings"])
    yield ""
    yield f"Scored with vesselseg {content['versions']['vesselseg']} on {content['created'][:10]}."


def _index(content: dict[str, Any]) -> Iterator[EvalResult]:
    data = content["data"]
    for name in SHOWN_METRICS:
        row = content["summary"].get(name)
        if row is not None and row["mean"] is not None:
            yield EvalResult(
                task_type="image-segmentation",
                dataset_type=Path(data["folder"]).name,
                dataset_name=Path(data["folder"]).name,
                dataset_split=data["split"],
                dataset_revision=data["fingerprint"],
                metric_type=name,
                metric_name=_label(content, name),
                metric_value=round(row["mean"], 4),
            )


def _label(content: dict[str, Any], name: str) -> str:
    metric = content.get("metrics", {}).get(name, {})
    unit = f" [{content.get('length_unit', 'px')}]" if metric.get("unit") == "px/mm" else ""
    return str(metric.get("label", name)) + unit


def _with_section(text: str, section: str) -> str:
    """The card's text with the section replaced, else inserted before "## Use", else appended."""
    start, end = text.find(BEGIN), text.find(END)
    if 0 <= start < end:
        return text[:start] + section + text[end + len(END) :]
    use = re.search(r"^## Use$", text, re.MULTILINE)
    if use:
        return f"{text[: use.start()]}{section}\n\n{text[use.start() :]}"
    return f"{text.rstrip()}\n\n{section}\n"
