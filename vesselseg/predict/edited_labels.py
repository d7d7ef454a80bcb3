"""LabelMe files of a result folder: those that a person has edited since are never written over, nor deleted.

They are told by their bytes. What is written is recorded before it is, by path and SHA-256; a file with other bytes is
somebody's. So is one without a record, unless it says what would be written there.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from vesselseg.imaging.labelme import PHRASES_KEY

FOLDER = "labelme"
Record = dict[str, Any]


class EditedLabels:
    """Threads may share it. out: the folder of results. note: keeps a record for the next run.

    kept: paths below out of edited files that would have been written over or deleted.
    """

    def __init__(self, out: Path, note: Callable[[Record], None] = lambda _: None) -> None:
        self._out, self._note = Path(out), note
        self._written: dict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()
        self.kept: set[str] = set()

    def take_in(self, record: Any) -> None:
        """A record of an earlier run; anything else is passed over."""
        if isinstance(record, dict) and isinstance(record.get("labelme"), str):
            self._written[record["labelme"]].add(str(record.get("sha256")))

    def records(self) -> Iterator[Record]:
        """All of them."""
        for path, digests in self._written.items():
            yield from ({"labelme": path, "sha256": digest} for digest in sorted(digests))

    def claim(self, path: str, content: bytes) -> bool:
        """Record content, which is about to be written to path; False where the edited file there is to be kept."""
        with self._lock:
            if self._is_edited(path, content):
                self.kept.add(path)
                return False
            digest = _digest(content)
            if digest not in self._written[path]:
                self._written[path].add(digest)
                self._note({"labelme": path, "sha256": digest})
        return True

    def keep(self, path: str) -> bool:
        """Whether a result must not be deleted: an edited LabelMe file, and the picture that lies beside one."""
        place = PurePosixPath(path)
        if place.parts[0] != FOLDER:
            return False
        label_file = str(place.with_suffix(".json"))
        with self._lock:
            edited = self._is_edited(label_file)
            if edited:
                self.kept.add(label_file)
        return edited

    def _is_edited(self, path: str, wanted: bytes | None = None) -> bool:
        try:
            present = (self._out / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return False
        known = _digest(present) in self._written.get(path, ())
        return not known and not (wanted is not None and _say_same(present, wanted))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _say_same(present: bytes, wanted: bytes) -> bool:
    """Whether both label the same in the same words; older files do not tell their phrases."""
    try:
        first, second = json.loads(present), json.loads(wanted)
        return bool({**first, PHRASES_KEY: None} == {**second, PHRASES_KEY: None})
    except (ValueError, TypeError):
        return False
