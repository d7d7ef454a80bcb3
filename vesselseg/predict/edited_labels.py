"""LabelMe files of a result folder: edited ones are never overwritten or deleted.

Every LabelMe file is recorded by path and SHA-256 before it is written. A file whose bytes match no record has been
edited. So has a file without a record, unless it has the content that would be written there.
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
    """Thread-safe. out: the result folder. save_record: stores a record for the next run.

    kept: edited files, relative to `out`, that would otherwise have been overwritten or deleted.
    """

    def __init__(self, out: Path, save_record: Callable[[Record], None] = lambda _: None) -> None:
        self._out, self._save_record = Path(out), save_record
        self._written: dict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()
        self.kept: set[str] = set()

    def load_record(self, record: Any) -> None:
        """Add a record of an earlier run; any other value is ignored."""
        if isinstance(record, dict) and isinstance(record.get("labelme"), str):
            self._written[record["labelme"]].add(str(record.get("sha256")))

    def records(self) -> Iterator[Record]:
        """All records."""
        for path, digests in self._written.items():
            yield from ({"labelme": path, "sha256": digest} for digest in sorted(digests))

    def claim(self, path: str, content: bytes) -> bool:
        """Record content that is about to be written to path; False if an edited file there must be kept."""
        with self._lock:
            if self._is_edited(path, content):
                self.kept.add(path)
                return False
            digest = _digest(content)
            if digest not in self._written[path]:
                self._written[path].add(digest)
                self._save_record({"labelme": path, "sha256": digest})
        return True

    def protects(self, path: str) -> bool:
        """Whether a result must not be deleted: an edited LabelMe file, or the image next to one."""
        result = PurePosixPath(path)
        if result.parts[0] != FOLDER:
            return False
        label_file = str(result.with_suffix(".json"))
        with self._lock:
            edited = self._is_edited(label_file)
            if edited:
                self.kept.add(label_file)
        return edited

    def _is_edited(self, path: str, new: bytes | None = None) -> bool:
        """new: content that is about to replace the file."""
        try:
            present = (self._out / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return False
        recorded = _digest(present) in self._written.get(path, ())
        return not recorded and not (new is not None and _same_labels(present, new))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _same_labels(present: bytes, new: bytes) -> bool:
    """Whether two LabelMe files are equal but for the list of requested phrases, which older versions did not write."""
    try:
        first, second = json.loads(present), json.loads(new)
        return bool({**first, PHRASES_KEY: None} == {**second, PHRASES_KEY: None})
    except (ValueError, TypeError):
        return False
