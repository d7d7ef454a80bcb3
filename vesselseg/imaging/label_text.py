"""Text of label files: encodings and JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from vesselseg.imaging.label_shapes import LabelFileError
from vesselseg.imaging.notes import Note

# Half of a UTF-16 surrogate pair, left by tools that truncate names; it cannot be encoded as UTF-8.
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(f"{_HIGH}(?!{_LOW})|(?<!{_HIGH.replace('{2}', '[0-9a-fA-F]')}){_LOW}")


def decode_text(content: bytes) -> tuple[str, list[Note]]:
    """Text, and a note if it is not UTF-8: old Windows tools use the system's encoding, in China GBK.

    Raises LabelFileError.
    """
    if not content.strip():
        raise LabelFileError("the file is empty")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace"), [Note("encoding", "text is UTF-16, expected UTF-8")]
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        pass
    try:
        return content.decode("gb18030"), [Note("encoding", "text is not UTF-8; read as GBK (GB 18030)")]
    except UnicodeDecodeError:
        raise LabelFileError("the text is neither UTF-8 nor GBK; save the file as UTF-8") from None


def parse_json(text: str) -> Any:
    """Parse JSON; raises LabelFileError with line and column of the error."""
    try:
        return json.loads(_LONE_SURROGATE.sub("\\\\ufffd", text) if "\\u" in text else text)
    except json.JSONDecodeError as error:
        raise LabelFileError(
            f"not readable as JSON: {error.msg} at line {error.lineno}, column {error.colno}; is the file truncated?"
        ) from None
    except (RecursionError, ValueError) as error:
        raise LabelFileError(f"not readable as JSON: {error}") from None
