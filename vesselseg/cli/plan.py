"""`vesselseg plan`."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from vesselseg.cli.parameters import AboveZero, CfgOptions, Positive, Whole
from vesselseg.config.files import find_config
from vesselseg.config.overrides import read_overrides
from vesselseg.training.memory_plan.cards import card_named


def plan(
    config: str,
    *,
    gpus: Whole = 1,
    gpu_gib: AboveZero | None = None,
    card: str | None = None,
    images: Positive | None = None,
    json: Annotated[bool, Parameter(name="--json")] = False,
    cfg_options: CfgOptions = (),
) -> int:
    """Plan memory and time of a training from shapes alone: no weights, no GPU, only config.json and tokenizer.

    vesselseg plan CONFIG --gpus 4 --gpu-gib 24 [--card 3090] [--images N] [--json]

    Exit status: 0 it fits, 1 it does not, 2 bad input.

    Args:
        config: a recipe's name, or a config file
        gpus: GPUs, all of one machine; 0: one process on the CPU
        gpu_gib: memory of each in GiB (default: the card's, or 24)
        card: 3090, 4090, A100, H100 or H200: adds an estimate of the time
        images: training images to plan for (default: those of data_root)
        json: as JSON, see docs/memory_plan.md
    """
    path, chosen = find_config(config), card_named(card) if card else None
    overrides = read_overrides(path, cfg_options)
    from vesselseg.training.console import muted, quieten_imports

    quieten_imports()
    with muted():
        from vesselseg.config.load import load_config
        from vesselseg.training.memory_plan.changes import proposals
        from vesselseg.training.memory_plan.plan import Target, plan_memory, usable_bytes
        from vesselseg.training.memory_plan.report import json_report, text_report

    gib = gpu_gib or (chosen.gib if chosen else 24.0)
    target = Target(max(1, gpus), usable_bytes(gib, gpus) if gpus else None, chosen, images)
    values = load_config(path, overrides)
    planned = plan_memory(values, target)
    proposed = [] if planned.fits else proposals(values, target)
    print(as_json(json_report(planned, proposed)) if json else text_report(planned, proposed))
    return 0 if planned.fits else 1


def as_json(content: object) -> str:
    """One object."""
    return json.dumps(content, indent=1)
