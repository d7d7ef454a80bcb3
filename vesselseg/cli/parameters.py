"""Parameters that several commands share: one word for one thing, one help text.

DATA (`--data`) is the dataset folder and `--out` what is written, everywhere; older names of a parameter stay as
aliases where it is declared. Parsers of option values are here, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from vesselseg.imaging.mask_option import MaskValues
from vesselseg.inference.post_processing import PostProcessing


def text_parser(parse: Callable[[str], Any]) -> Callable[[type, Sequence[Token]], Any]:
    """A converter of cyclopts for a value in one word; parse raises ValueError with what was expected."""
    return lambda _, tokens: parse(tokens[-1].value)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r}: expected a whole number from 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise ValueError(f"{text!r}: expected a whole number from 0")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r}: expected a number above 0")
    return value


Positive = Annotated[int, Parameter(converter=text_parser(positive), n_tokens=1)]
Whole = Annotated[int, Parameter(converter=text_parser(whole), n_tokens=1)]
AboveZero = Annotated[float, Parameter(converter=text_parser(above_zero), n_tokens=1)]

Data = Annotated[Path, Parameter(help="dataset folder, or a fold of it")]
Out = Annotated[Path, Parameter(help="folder to write; appears whole or not at all")]
Force = Annotated[bool, Parameter(help="replace an earlier result in --out")]
Quiet = Annotated[bool, Parameter(help="no progress bar")]
Seed = Annotated[int, Parameter(help="of all random choices")]
Batch = Annotated[Positive, Parameter(help="images given to the model at once")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1 ...")]
Metric = Annotated[str, Parameter(help="what decides")]
CfgOptions = Annotated[
    tuple[str, ...],
    Parameter(
        name="--cfg-options",
        consume_multiple=True,
        show_default=False,
        help="KEY=VALUE ...: settings to override, e.g. schedule.lr=1e-4",
    ),
]
Values = Annotated[
    MaskValues, Parameter(converter=text_parser(MaskValues.parse), n_tokens=1, accepts_keys=False, show_default=False)
]
Steps = Annotated[PostProcessing, Parameter(name="*")]
# a dataclass whose fields are options of their own
Flat = Parameter(name="*")
Loading = Parameter(name="*", group="How the model is loaded")


def shown_default(value: Any) -> str | None:
    """How help shows a default: not at all where an option is simply off."""
    if value is None or value is False or value == "" or value == ():
        return None
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def show_warnings() -> None:
    """Messages from warnings on, without the names of their modules."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


def show_messages() -> None:
    """All messages of this package, warnings of others."""
    show_warnings()
    logging.getLogger("vesselseg").setLevel(logging.INFO)
