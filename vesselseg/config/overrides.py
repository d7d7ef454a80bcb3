"""What --cfg-options sets: KEY=VALUE as values, and a mistyped key answered without importing what it belongs to."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vesselseg.errors import ConfigError
from vesselseg.suggest import nearest_paths, suggestion

SETTING_PATHS = Path(__file__).with_name("setting_paths.txt")  # written by python -m tests.setting_paths


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """["schedule.lr=1e-4", ...] as given to --cfg-options; values are Python literals, anything else is text."""
    wrong = [item for item in items if "=" not in item or item.startswith("=")]
    if wrong:
        raise ConfigError(f"--cfg-options takes KEY=VALUE, found {', '.join(map(repr, wrong))}")
    return {key: parse_value(text) for key, text in (item.split("=", 1) for item in items)}


def parse_value(text: str) -> Any:
    """One value of --cfg-options: a Python literal, true, false, none, or plain text."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def unknown_setting(path: str, hint: str) -> str:
    """What is wrong with an override whose path nothing accepts."""
    return f"--cfg-options {path}: no such setting{hint}"


def read_overrides(config: Path, items: Sequence[str]) -> dict[str, Any]:
    """`parse_overrides` for this config, with `refuse_unknown_settings`."""
    overrides = parse_overrides(items)
    refuse_unknown_settings(config, overrides)
    return overrides


def refuse_unknown_settings(config: Path, overrides: Iterable[str]) -> None:
    """Raise ConfigError for dotted paths that no config like this one accepts, before anything large is imported.

    Loading a config finds the same and more, but needs the signatures of all classes that it names. Here the names in
    `SETTING_PATHS` decide. They are complete unless the config brings settings of its own, by `type`, custom modules
    or a dict with any key, so that whatever its text mentions is left to `load_config`.
    """
    known = SETTING_PATHS.read_text(encoding="utf-8").split()
    text = config.read_text(encoding="utf-8", errors="replace")
    own = set(re.findall(r"\w+", text))
    if own & {"type", "custom_imports"} or any(path.endswith(("type", "custom_imports")) for path in overrides):
        return
    unknown = [path for path in overrides if path not in known and path.rpartition(".")[2] not in own]
    problems = [unknown_setting(path, suggestion(nearest_paths(path, known))) for path in unknown]
    if problems:
        raise ConfigError("\n  ".join([f"{config}: {len(problems)} problem(s)", *problems]))
