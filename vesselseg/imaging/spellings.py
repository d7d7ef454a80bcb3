"""Rules by which a name in a label file also matches a file that is spelled differently; docs/data.md lists them.

Case and Unicode composition never count. The other rules are tried in order where the name itself is not there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit

_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio puts it before the name of an uploaded file
_LOCAL_FILE = "d"  # query parameter of Label Studio's /data/local-files/?d=folder/name.png


def spelling_key(name: str) -> str:
    """The name without differences of case and Unicode composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def other_spellings(name: str) -> list[tuple[str, str]]:
    """(rule, name) of each rule that changes the name, with forward slashes."""
    found: dict[str, str] = {}
    for rule, change in _RULES:
        spelled = change(name)
        if spelled and spelled != name:
            found.setdefault(spelled, rule)
    return [(rule, spelled) for spelled, rule in found.items()]


def _local_file(name: str) -> str:
    try:
        values = parse_qs(urlsplit(name).query).get(_LOCAL_FILE, [])
    except ValueError:
        return ""
    return values[0] if values else ""


def _without_upload(name: str) -> str:
    folder, slash, last = unquote(name).rpartition("/")
    return folder + slash + _UPLOAD.sub("", last)


_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("the address of a local file", _local_file),
    ("percent-encoding", unquote),
    ("percent-encoding, twice", lambda name: unquote(unquote(name))),
    ("percent-encoding with + for a space", unquote_plus),
    ("the prefix of an upload", _without_upload),
)
