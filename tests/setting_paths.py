"""Writes vesselseg/config/setting_paths.txt, the names of all settings: python -m tests.setting_paths."""

from __future__ import annotations

from vesselseg.config.files import recipes
from vesselseg.config.load import HOMES, known_paths, load_config
from vesselseg.config.overrides import SETTING_PATHS


def render() -> str:
    """One dotted path a line; those that must not be set are among them, because `load_config` says what to do."""
    found = set(HOMES)
    for recipe in recipes():
        found |= known_paths(load_config(recipe.path).to_dict())
    return "\n".join([*sorted(found), ""])


if __name__ == "__main__":
    SETTING_PATHS.write_text(render(), encoding="utf-8")
