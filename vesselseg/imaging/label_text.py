"""Label files that are text: encodings and JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from vesselseg.imaging.label_shapes import LabelFileError

# half a character, as cutting names after so many 16-bit units leaves it; no file can be written with it
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(f"{_HIGH}(?!{_LOW})|(?<!{_HIGH.replace('{2}', '[0-9a-fA-F]')}){_LOW}")


def decode_text(content: bytes) -> tuple[str, list[tuple[str, str]]]:
    """Text and a note where it is not UTF-8: old tools on Windows wrote the system's encoding, in China GBK."""
    if not content.strip():
        raise LabelFileError("the file is empty")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace"), [("encoding", "text is UTF-16, expected UTF-8")]
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        pass
    try:
        return content.decode("gb18030"), [("encoding", "text is not UTF-8; read as GBK (GB 18030)")]
    except UnicodeDecodeError:
        raise LabelFileError("the text is neither UTF-8 nor GBK; save the file as UTF-8") from None


def parse_json(text: str) -> Any:
    """The content of a JSON file; raises LabelFileError with the place of the mistake."""
    try:
        return json.loads(_LONE_SURROGATE.sub("\\\\ufffd", text) if "\\u" in text else text)
    except json.JSONDecodeError as error:
        raise LabelFileError(
            f"not readable as JSON: {error.msg} at line {error.lineno}, column {error.colno}; is it cut off?"
        ) from None
    except (RecursionError, ValueError) as error:
        raise LabelFileError(f"not readable as JSON: {error}") from None
