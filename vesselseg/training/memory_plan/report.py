"""A plan as a table and as JSON."""

from __future__ import annotations

from typing import Any

from vesselseg.machine import GIB
from vesselseg.training.memory_plan import zero as ds
from vesselseg.training.memory_plan.changes import Proposal
from vesselseg.training.memory_plan.plan import ACTIVATIONS, ENCODING, FEATURES, LOGITS, WORKSPACE, MemoryPlan

ROWS = (
    *(ds.FROZEN, ds.TRAINABLE, ds.GATHERED, ds.GRADIENTS, ds.MASTERS, ds.MOMENTS, ds.AVERAGE),
    *(ACTIVATIONS, LOGITS, FEATURES, ENCODING, ds.STEP, ds.BUCKETS, WORKSPACE),
)
LABEL = 22


def text_report(plan: MemoryPlan, proposed: list[Proposal]) -> str:
    """The whole plan as lines."""
    lines = [_title(plan)]
    if plan.phases:
        lines += ["", *_table(plan), "", _verdict(plan), *text_changes(plan, proposed)]
    lines += ["", *_host(plan), *_run(plan), *_time(plan)]
    return "\n".join(lines)


def text_changes(plan: MemoryPlan, proposed: list[Proposal]) -> list[str]:
    """Changes that make a plan fit; nothing if it fits."""
    if plan.fits:
        return []
    if not proposed:
        return ["no change of this config is enough: use a smaller base model, more GPUs or larger ones"]
    together = len(proposed[0].changes) > 1
    lines = [f"changes that make it fit (--cfg-options){':' if together else ', any one of:'}"]
    for proposal in proposed:
        lines += [f"  {change.options}  ({change.cost})" for change in proposal.changes]
        lines.append(f"    -> {peak_line(proposal.plan)}")
    return lines


def json_report(plan: MemoryPlan, proposed: list[Proposal]) -> dict[str, Any]:
    """Plain values; docs/memory_plan.md names each."""
    return {
        "gpus": plan.target.gpus,
        "usable_gib": _gib(plan.target.usable),
        "fits": plan.fits,
        "tight": plan.tight,
        "parameters": plan.parameters,
        "trainable": plan.trainable,
        **({"gpu": _gpu_values(plan)} if plan.phases else {}),
        "host_gib": {name: _gib(value) for name, value in plan.host.memory.items()},
        "feature_store_gib": _gib(plan.host.disk),
        "checkpoint_bytes": plan.checkpoint,
        "resume_bytes": plan.resume,
        "images": {"count": plan.images.count, "assumed": plan.images.assumed, "tiles": plan.images.tiles},
        "tokens_per_image": round(plan.images.tokens, 1),
        "iterations": plan.schedule.iterations,
        "optimizer_steps": plan.schedule.optimizer_steps,
        "time": _time_values(plan),
        "changes": [
            {
                "settings": {key: value for change in one.changes for key, value in change.settings.items()},
                "costs": [change.cost for change in one.changes],
                "gpu": _gpu_values(one.plan),
            }
            for one in proposed
        ],
    }


def _gpu_values(plan: MemoryPlan) -> dict[str, Any]:
    return {
        "peak_gib": _gib(plan.peak),
        "reserved_gib": _gib(plan.reserved),
        "peak_phase": plan.peak_phase,
        "phases_gib": {
            phase: {row: _gib(rows[row]) for row in ROWS if rows.get(row)} for phase, rows in plan.phases.items()
        },
    }


def _gib(value: float | None) -> float | None:
    return None if value is None else round(value / GIB, 3)


def _title(plan: MemoryPlan) -> str:
    where = f"{plan.target.gpus} GPU(s)" if plan.phases else f"{plan.target.gpus} process(es) on the CPU"
    return (
        f"{plan.setup.sa2va['base']} on {where}: {plan.parameters / 1e9:.2f} G parameters, of which "
        f"{plan.trainable / 1e6:.1f} M train; planned from shapes, nothing was measured"
    )


def _table(plan: MemoryPlan) -> list[str]:
    """One column for each phase; the one with the peak is marked."""
    names = [f"{name} *" if name == plan.peak_phase else name for name in plan.phases]
    lines = [f"{'GiB per GPU':<{LABEL}}" + "".join(f"{name:>17}" for name in names)]
    for row in ROWS:
        values = [rows.get(row, 0) for rows in plan.phases.values()]
        if any(value >= 0.005 * GIB for value in values):
            lines.append(
                f"{row:<{LABEL}}" + "".join(f"{value / GIB:17.2f}" if value else f"{'-':>17}" for value in values)
            )
    sums = "".join(f"{sum(rows.values()) / GIB:17.2f}" for rows in plan.phases.values())
    return [*lines, f"{'allocated':<{LABEL}}{sums}"]


def _verdict(plan: MemoryPlan) -> str:
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    if plan.tight:
        verdict = "fits tightly: torch must release cached blocks now and then, which takes time"
    return f"{peak_line(plan)}: {verdict}"


def peak_line(plan: MemoryPlan) -> str:
    """Peak and available memory as one line."""
    usable = "" if plan.target.usable is None else f", available to torch {plan.target.usable / GIB:.2f}"
    allocated = f"peak {plan.peak / GIB:.2f} GiB allocated ({plan.peak_phase})"
    return f"{allocated}, about {plan.reserved / GIB:.2f} reserved{usable}"


def _host(plan: MemoryPlan) -> list[str]:
    parts = ", ".join(f"{name} {value / GIB:.1f}" for name, value in plan.host.memory.items())
    lines = [f"main memory of the machine: {plan.host.total / GIB:.1f} GiB ({parts})"]
    if plan.host.disk:
        lines.append(f"feature store on disk: {plan.host.disk / GIB:.1f} GiB")
    lines.append(
        f"a checkpoint takes {plan.checkpoint / 1e6:,.0f} MB, and {plan.resume / 1e6:,.0f} MB to resume from it"
    )
    return lines


def _run(plan: MemoryPlan) -> list[str]:
    images = plan.images
    seen = "assumed, there is no dataset yet" if images.assumed else "in the training split"
    return [
        f"images: {images.count} ({seen}), {images.tiles} tile(s), {images.tokens:.0f} tokens, "
        f"{images.objects:.1f} object(s) each",
        *plan.schedule.describe().splitlines(),
    ]


def _time(plan: MemoryPlan) -> list[str]:
    time = plan.time
    if time is None:
        return []
    return [
        f"estimate for {time.card.name} (arithmetic and bytes, not measured): {time.iteration:.2f} s per iteration, "
        f"{time.images_per_second:.1f} images/s in all, {time.hours:.1f} h without validation and loading",
        f"  arithmetic {time.arithmetic:.3f} s ({time.flops / 1e12:.1f} TFLOP per image), memory {time.memory:.3f}, "
        f"launches {time.launches:.3f}, communication {time.communication:.3f}, optimizer {time.optimizer:.3f}",
    ]


def _time_values(plan: MemoryPlan) -> dict[str, Any] | None:
    time = plan.time
    if time is None:
        return None
    return {
        "estimate": True,
        "card": time.card.name,
        "iteration_s": round(time.iteration, 4),
        "images_per_s": round(time.images_per_second, 2),
        "hours": round(time.hours, 2),
        "tflop_per_image": round(time.flops / 1e12, 2),
        **{
            f"{name}_s": round(getattr(time, name), 4)
            for name in ("arithmetic", "memory", "launches", "communication", "optimizer")
        },
    }
