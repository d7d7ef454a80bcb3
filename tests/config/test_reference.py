"""docs/configuration.md is what the schema says, and says something of every setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from vesselseg.config.check import own_defaults, typed_nodes
from vesselseg.config.files import find_config
from vesselseg.config.load import HOMES, KEYS, load_config
from vesselseg.config.reference import EXAMPLE, meanings, reference_page
from vesselseg.config.settings import RUN, SECTIONS, section_fields

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page() -> str:
    return reference_page()


def test_the_page_is_up_to_date(page: str) -> None:
    """Otherwise: vesselseg configs reference > docs/configuration.md"""
    assert (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8") == page


def test_every_setting_has_a_row_with_default_and_meaning(page: str) -> None:
    rows = [line.strip("| ").split(" | ") for line in page.split("## Values that")[0].splitlines() if line[:3] == "| `"]
    listed = {row[0].strip("`"): row[-1] for row in rows}
    wanted = {*KEYS, *RUN} - set(SECTIONS)
    wanted |= {f"{section}.{name}" for section in SECTIONS for name in section_fields(section)}
    for path, _, target in typed_nodes(load_config(find_config(EXAMPLE)).to_dict()):
        wanted |= {f"{path}.{name}" for name in own_defaults(target)}
    assert wanted - set(HOMES) - set(listed) == set()
    assert [name for name, meaning in listed.items() if not meaning.strip("` ")] == []
    assert "| `schedule.epochs` | `3` | passes over the training images |" in page


def undocumented(a: int, b: int = 1) -> None:
    """Something. a: the first, with a ratio 1: 2 in it. Raises nothing."""


class Documented:
    """b, c: two of a kind; None: neither. d: the last."""

    # What is said above,
    # in two lines.
    def __init__(self, a: int = 0, b: int = 1, c: int = 2, d: int = 3) -> None:
        pass


def test_meanings_are_found_where_they_are_written() -> None:
    assert meanings(undocumented) == {"a": "the first, with a ratio 1: 2 in it"}
    assert meanings(Documented) == {
        "b": "two of a kind; None: neither",
        "c": "two of a kind; None: neither",
        "d": "the last",
    }
