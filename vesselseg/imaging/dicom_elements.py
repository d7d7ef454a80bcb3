"""Elements of a DICOM header, read so that one unreadable value hides no other one."""

from __future__ import annotations

import math
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement

_TEXT_NUMBERS = ("DS", "IS")


def places(header: Dataset, frame: int) -> list[Dataset]:
    """Where an element of a frame may stand: the file, then the items of its functional groups (enhanced DICOM)."""
    found = [header]
    for keyword, position in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = items(header, keyword)
        if position < len(groups):
            tags = list(groups[position].keys())  # iterating over the item itself would convert every element
            found += [item for tag in tags for item in items(groups[position], tag)[:1]]
    return found


def items(dataset: Dataset, element: Any) -> list[Dataset]:
    """The items of a sequence; none if it is absent, empty, unreadable or no sequence. element: keyword or tag."""
    try:
        value = dataset[element].value if element in dataset else None
        return [item for item in value or () if isinstance(item, Dataset)]
    except Exception:  # pydicom raises many types on damaged elements
        return []


def has(dataset: Dataset, keyword: str) -> bool:
    """Whether the element is there and not empty, readable or not."""
    element = dataset.get_item(keyword)
    return element is not None and element.value not in (None, "", b"")


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """The values of a numeric element, NaN for each unreadable or blank one; empty if the element is absent."""
    if not has(dataset, keyword):
        return []
    element = dataset.get_item(keyword)
    tag = tag_for_keyword(keyword)
    assert element is not None and tag is not None
    vr = element.VR if element.VR not in (None, "UN") else dictionary_VR(tag)
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes) and vr in _TEXT_NUMBERS:
        # Not converted by pydicom: one unreadable value would make the whole element unreadable.
        values: Any = element.value.decode("ascii", "replace").rstrip("\0").split("\\")
    else:
        try:
            values = dataset[keyword].value
        except Exception:  # pydicom raises many types on damaged elements
            return [math.nan]
    is_list = hasattr(values, "__iter__") and not isinstance(values, (str, bytes))
    return [_number(value) for value in (values if is_list else [values])]


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first value of a numeric element; None if it is absent, unreadable or not finite."""
    values = numbers(dataset, keyword)
    return values[0] if values and math.isfinite(values[0]) else None


def text(dataset: Dataset, keyword: str) -> str:
    """A code string in capitals without spaces around it; "" if it is absent or unreadable."""
    return plain(dataset, keyword).upper()


def plain(dataset: Dataset, keyword: str) -> str:
    """A text without spaces around it; "" if it is absent or unreadable."""
    try:
        return str(dataset.get(keyword) or "").strip(" \0")
    except Exception:  # pydicom raises many types on damaged elements
        return ""


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
