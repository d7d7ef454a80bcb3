"""Read a JSON file that came with weights: any content becomes an object or one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vesselseg.errors import WeightsError

LARGEST = 64_000_000  # bytes; the index of a thousand shards has a few millions
DEEPEST = 20  # levels of objects and lists


def read_json_object(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """Raises WeightsError for what is no object, FileNotFoundError and NotADirectoryError for what is not there."""
    try:
        size = path.stat().st_size
        if size > largest:
            raise WeightsError(f"{path}: {size} bytes, more than the {largest} that such a file may have")
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except WeightsError:
        raise
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise WeightsError(f"{path}: not readable as JSON ({error}); download it again") from None
    except IsADirectoryError:
        raise WeightsError(f"{path} is a folder; expected a JSON file, download it again") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected an object in braces, found {_kind(content)}; download it again")
    if _is_deep(content):
        raise WeightsError(f"{path}: nested more than {DEEPEST} levels deep; download it again")
    return content


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(DEEPEST):
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for values in inner for value in values]
    return bool(level)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _kind(content: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(content), "a number")
