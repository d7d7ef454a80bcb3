"""Changes of a config that make a training fit, cheapest first, each with its own plan."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vesselseg.config.load import apply_overrides, check_config
from vesselseg.models.lora import Lora
from vesselseg.training.memory_plan.plan import MemoryPlan, Target, plan_memory
from vesselseg.training.memory_plan.setup import Setup

SMALL_BUCKET = 20_000_000
LARGE_BUCKET = 50_000_000
ON_CPU = {"device": "cpu", "pin_memory": True}
SHOWN = 3  # number of sufficient single changes that are shown, cheapest first
ZERO = "strategy.zero_optimization"


@dataclass(frozen=True)
class Change:
    """settings: dotted paths with their new values. cost: in a few words."""

    settings: Mapping[str, Any]
    cost: str

    @property
    def options(self) -> str:
        """As an argument of --cfg-options, quoted for a shell."""
        return " ".join(_quoted(f"{key}={value}") for key, value in self.settings.items())


@dataclass(frozen=True)
class Proposal:
    """Changes that together make a training fit, and its plan with them."""

    changes: tuple[Change, ...]
    plan: MemoryPlan


def proposals(config: Mapping[str, Any], target: Target) -> list[Proposal]:
    """The cheapest single changes that suffice; else the smallest combination that does; empty if none does."""
    offered = possible_changes(config, target.gpus)
    singles: list[Proposal] = []
    for change in offered:
        plan = plan_memory(changed(config, [change]), target)
        if plan.fits:
            singles.append(Proposal((change,), plan))
        if len(singles) == SHOWN:
            break
    return singles or _together(config, target, offered)


def _together(config: Mapping[str, Any], target: Target, offered: list[Change]) -> list[Proposal]:
    """Add changes by their cost until they suffice; then drop those that are not needed."""
    taken: list[Change] = []
    for change in offered:
        more = [one for one in taken if not one.settings.keys() & change.settings.keys()] + [change]
        taken = more if _accepted(config, more) else taken
        if plan_memory(changed(config, taken), target).fits:
            break
    else:
        return []
    for change in reversed(taken[:-1]):
        fewer = [one for one in taken if one is not change]
        if _accepted(config, fewer) and plan_memory(changed(config, fewer), target).fits:
            taken = fewer
    return [Proposal(tuple(taken), plan_memory(changed(config, taken), target))]


def changed(config: Mapping[str, Any], changes: list[Change]) -> dict[str, Any]:
    """A copy of the config's values with these changes."""
    values = _plain(config)
    for change in changes:
        apply_overrides(values, copy.deepcopy(dict(change.settings)))
    return values


def possible_changes(config: Mapping[str, Any], gpus: int) -> list[Change]:
    """Changes that this config does not contain yet and that its settings allow, cheapest first."""
    setup = Setup(_plain(config), gpus)
    return [change for change in (*_free(setup), *_slower(setup), *_lossy(setup)) if _accepted(config, [change])]


def _accepted(config: Mapping[str, Any], changes: list[Change]) -> bool:
    """Whether a config with these changes is valid."""
    values = _plain(config)
    unknown = [apply_overrides(values, copy.deepcopy(dict(change.settings))) for change in changes]
    return not any(unknown) and not check_config(values)


def _quoted(setting: str) -> str:
    return f'"{setting}"' if "'" in setting else shlex.quote(setting)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(config.to_dict() if hasattr(config, "to_dict") else dict(config))


def _free(setup: Setup) -> Iterator[Change]:
    """Changes that cost neither time nor accuracy."""
    zero, sa2va = setup.zero, setup.sa2va
    if (sa2va.get("lora") or {}).get("modules_to_save"):
        yield Change({"model.sa2va.lora.modules_to_save": []}, "no cost: the five new tokens have separate rows")
    large = [name for name in ("reduce_bucket_size", "allgather_bucket_size") if getattr(zero, name) > LARGE_BUCKET]
    if large:
        yield Change({f"{ZERO}.{name}": SMALL_BUCKET for name in large}, "no cost")
    if setup.stage < 3 and not sa2va.get("embedding_on_host"):
        yield Change({"model.sa2va.embedding_on_host": True}, "main memory for the embedding table")
    if setup.llm == "lora" and setup.stage < 3 and sa2va["fused"] is False:
        yield Change({"model.sa2va.fused": "auto"}, "no cost; needs Triton")
    trains = sa2va.get("trainable") or {}
    if not setup.store and setup.stage < 3 and not trains.get("sam2_encoder") and not trains.get("vision"):
        yield Change({"features.store": "disk"}, "disk space; faster; one augmented view per image and variant")


def _slower(setup: Setup) -> Iterator[Change]:
    """Changes that cost time."""
    schedule, sa2va = setup.schedule, setup.sa2va
    if sa2va.get("gradient_checkpointing") is not True:
        yield Change({"model.sa2va.gradient_checkpointing": True}, "up to a third slower")
    batch, factor = schedule.micro_batch, 2
    while batch >= factor:
        settings = {"schedule.micro_batch": batch // factor, "schedule.accumulation": schedule.accumulation * factor}
        if batch % factor == 0:
            yield Change(settings, "slower per image, the same images per step")
        factor *= 2
    if not setup.activations_on_host and setup.on_gpu:
        yield Change({"model.sa2va.activations_on_host": True}, "main memory, a little slower")
    if not setup.quantised and setup.stage < 3 and setup.llm == "lora":
        yield Change({"model.sa2va.quantise": "nf4"}, "slower; the frozen language model is rounded to 4 bits")
    if not setup.optimizer_on_host:
        yield Change({f"{ZERO}.offload_optimizer": ON_CPU}, "slower steps, main memory")
    if setup.stage < 3 and setup.gpus > 1 and not setup.quantised:
        yield Change({f"{ZERO}.stage": 3}, "every layer is gathered from all GPUs in each pass")
    if not setup.weights_on_host and not setup.quantised:
        whole = {f"{ZERO}.stage": 3, f"{ZERO}.offload_param": ON_CPU, f"{ZERO}.offload_optimizer": ON_CPU}
        yield Change(whole, "slow: every layer crosses the bus in each pass")


def _lossy(setup: Setup) -> Iterator[Change]:
    """Changes that cost accuracy."""
    sa2va = setup.sa2va
    rank = Lora(**(sa2va.get("lora") or {})).r
    if sa2va.get("max_tiles") != 1:
        yield Change({"model.sa2va.max_tiles": 1}, "less detail for the language model")
    if setup.llm == "lora" and rank > 16:
        yield Change({"model.sa2va.lora.r": 16}, "fewer weights to learn with")
    if sa2va["sam2"]["image_size"] > 512:
        yield Change({"model.sa2va.sam2.image_size": 512}, "thin vessels are lost first")
