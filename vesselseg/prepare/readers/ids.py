"""Ids as whole numbers, floats or text (1, 1.0, "1"): matched across types where only one is meant."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

_WHOLE = re.compile(r"([+-]?\d+)(\.0*)?")


class Ids:
    """Ids that are listed, and those that refer to them."""

    def __init__(self, listed: Iterable[Any]) -> None:
        self._listed = {(type(one), one) for one in listed}
        self._by_value: dict[str, list[Any]] = defaultdict(list)
        for _, one in self._listed:
            self._by_value[_value(one)].append(one)

    def find(self, wanted: Any) -> Any:
        """The listed id that is meant: of the same type, else the only one of its value; else the wanted one itself."""
        same = self._by_value.get(_value(wanted), [])
        return wanted if (type(wanted), wanted) in self._listed or len(same) != 1 else same[0]


def is_id(value: Any) -> bool:
    """Whether a JSON value can be an id."""
    return isinstance(value, (int, str)) or (isinstance(value, float) and math.isfinite(value))


def _value(one: Any) -> str:
    if isinstance(one, float) and one.is_integer():
        return str(int(one))
    text = str(one).strip()
    whole = _WHOLE.fullmatch(text)
    return str(int(whole[1])) if whole and len(whole[1]) < 20 else text
