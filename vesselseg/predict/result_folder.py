"""The folder that predictions are written to: what is finished, and how the next call goes on from there.

`predictions.jsonl` holds one line per unit (a file, or a series of them), written after the unit's results, so a run
may be killed at any moment; and one per LabelMe file, written before it, see `EditedLabels`. Of several processes the
first writes there and each other one to a part of its own, which is taken in when all are done, or when the next run
starts. `predictions.json` and `coco.json` are made when a run ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools import mask as coco_mask

from vesselseg.errors import UserError
from vesselseg.output_folder import replace_text
from vesselseg.predict.edited_labels import EditedLabels

STATE_FILE, SUMMARY_FILE, COCO_FILE = "predictions.jsonl", "predictions.json", "coco.json"
PARTS = "predictions.rank*.jsonl"
FORMAT = 5  # raise it with every change of what is written: results of another format are made again
Entry = dict[str, Any]


class ResultFolder:
    """Entries by file. An entry has `file`, `name` and either `error` or `model`, `options`, `outputs` and results.

    Those of a clip are in its `frames`, each with a `name` of its own. labels: which LabelMe files people have edited.
    """

    def __init__(self, out: Path) -> None:
        self.out = Path(out)
        self.entries: dict[str, Entry] = {}
        self._state = self.out / STATE_FILE
        self._left: set[Path] = set()  # folders that results were deleted from
        self._appending = threading.Lock()
        self.labels = EditedLabels(self.out, self._append)

    @contextmanager
    def opened(self, header: Mapping[str, Any]) -> Iterator[ResultFolder]:
        """Make or continue the folder, alone; header: what predictions.json says of the whole call.

        Raises UserError where the folder holds something else, or another call writes to it.
        """
        self._check()
        self.out.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.out, os.O_RDONLY)
        try:
            self._lock(lock)
            self.take_in_parts()
            try:
                yield self
            finally:
                self._read_parts()
                self._summarise(header)
                self._remove_empty()
        finally:
            os.close(lock)

    @contextmanager
    def joined(self, rank: int) -> Iterator[ResultFolder]:
        """The folder that process 0 has opened, for another process, which adds to a part of its own."""
        self._read(self.out / STATE_FILE)
        self._state = self.out / PARTS.replace("*", str(rank))
        yield self

    def take_in_parts(self) -> None:
        """Make one state of all parts; only while no other process writes."""
        self._read(self.out / STATE_FILE)
        parts = self._read_parts()
        replace_text(self.out / STATE_FILE, "".join(map(_line, [*self.labels.records(), *self.entries.values()])))
        for path in parts:
            path.unlink()

    def finished(self, file: str, size: int, sha256: str, model: str, options: Mapping[str, Any]) -> bool:
        """Whether the file's results are there, made from these bytes with this model and these options."""
        entry = self.entries.get(file, {"error": "unknown"})
        wanted = {"bytes": size, "sha256": sha256, "model": model, "options": dict(options), "format": FORMAT}
        if "error" in entry or any(entry.get(key) != value for key, value in wanted.items()):
            return False
        return all((self.out / name).is_file() and (self.out / name).stat().st_size for name in entry["outputs"])

    def add(self, entry: Entry) -> None:
        """Note a file as done or failed; results of an earlier call that this one did not write are deleted.

        Edited LabelMe files stay.
        """
        known = self.entries.get(entry["file"], {})
        for name in sorted(set(known.get("outputs", ())) - set(entry.get("outputs", ()))):
            if not self.labels.keep(name):
                (self.out / name).unlink(missing_ok=True)
                self._left.add((self.out / name).parent)
        self.entries[entry["file"]] = {**entry, "format": FORMAT}
        self._append(self.entries[entry["file"]])

    def _append(self, line: Entry) -> None:
        with self._appending, self._state.open("a", encoding="utf-8") as file:
            file.write(_line(line))

    def _check(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out} is a file; name a folder")
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / STATE_FILE).is_file():
            raise UserError(f"{self.out} holds no {STATE_FILE}, so it is no output of this tool; name another folder")

    def _lock(self, folder: int) -> None:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.out}: another call is writing to it; wait, or name another folder") from None
        except OSError:  # some network file systems lock no folders; two calls at once are then the user's to avoid
            return

    def _read_parts(self) -> list[Path]:
        parts = sorted(self.out.glob(PARTS))
        for path in parts:
            self._read(path)
        return parts

    def _read(self, path: Path) -> None:
        # Not splitlines: it also cuts at U+2028 and the like, which JSON leaves in names as they are.
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # cut off by a kill or a full disk
                continue
            if _is_entry(entry):
                self.entries[entry["file"]] = entry
            else:
                self.labels.take_in(entry)

    def _summarise(self, header: Mapping[str, Any]) -> None:
        entries = sorted(self.entries.values(), key=lambda entry: str(entry["file"]))
        failed = sum("error" in entry for entry in entries)
        content = {
            "format": FORMAT,
            **header,
            "counts": {"done": len(entries) - failed, "failed": failed},
            "files": [_without_codes(entry) for entry in entries],
        }
        replace_text(self.out / SUMMARY_FILE, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        coded = [picture for entry in entries for picture in _coded_pictures(entry)]
        if coded:
            replace_text(self.out / COCO_FILE, json.dumps(_coco(coded), ensure_ascii=False) + "\n")
        else:
            (self.out / COCO_FILE).unlink(missing_ok=True)

    def _remove_empty(self) -> None:
        """Folders that nothing is left in; at the end, when nobody is about to write there."""
        for folder in self._left:
            while folder != self.out:
                try:
                    folder.rmdir()
                except OSError:  # holds other results, or is gone already
                    break
                folder = folder.parent


def frame_name(name: str, number: int) -> str:
    """What a frame of a clip is called, counted from 0; name: the clip's."""
    return f"{name}/{number:05d}"


def name_outputs(
    files: Sequence[str], tags: Sequence[str], known: Mapping[str, Entry], clips: Collection[str] = ()
) -> dict[str, str]:
    """File -> the path, without ending, that its results have below the folder of each kind.

    A file is named as it is without its ending; where two would get the same (a.png and a.jpg, or names that differ in
    case only) the later one keeps its ending: a_jpg. tags: what single results add to it. known: entries of earlier
    calls, whose names stay. clips: files whose name may become a folder of frames, which no other file's folder may be.
    """
    names: dict[str, str] = {}
    tags = ("", *tags)
    frames = [frame["name"] for entry in known.values() for frame in entry.get("frames", ())]
    taken = {f"{name}{tag}".casefold() for name in frames for tag in tags}
    folders = {str(folder).casefold() for file in (*known, *files) for folder in PurePosixPath(file).parents}
    for file in [*known, *(file for file in files if file not in known)]:
        kept = str(known[file]["name"]) if file in known else None
        for name in _candidates(file, kept):
            claimed = {f"{name}{tag}".casefold() for tag in tags}
            if not claimed & taken and (kept == name or file not in clips or name.casefold() not in folders):
                break
        taken |= claimed
        names[file] = name
    return names


def _candidates(file: str, known: str | None) -> Iterator[str]:
    if known is not None:
        yield known
    stem = PurePosixPath(file).with_suffix("").as_posix()
    yield stem
    yield (ending := f"{stem}_{PurePosixPath(file).suffix[1:] or 2}")
    number = 2
    while True:
        yield f"{ending}_{number}"
        number += 1


def _line(entry: Entry) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _is_entry(entry: Any) -> bool:
    """Whether a line is one of ours; paths that lead out of the folder are not, they would be deleted."""
    if not isinstance(entry, dict) or not {"file", "name"} <= entry.keys():
        return False
    paths = [PurePosixPath(name) for name in entry.get("outputs", ())]
    return not any(path.is_absolute() or ".." in path.parts for path in paths)


def _without_codes(entry: Entry) -> Entry:
    """An entry as predictions.json shows it."""
    shown = {key: value for key, value in entry.items() if key != "codes"}
    if "frames" in shown:
        shown["frames"] = [_without_codes(frame) for frame in shown["frames"]]
    return shown


def _coded_pictures(entry: Entry) -> Iterator[Entry]:
    """What of an entry has run-length codes: its picture, or the frames of its clip; file: as coco.json names it."""
    about = {key: entry.get(key) for key in ("width", "height")}
    if "codes" in entry:
        yield {**about, "file": entry["file"], "objects": entry["objects"], "codes": entry["codes"]}
    for number, frame in enumerate(entry.get("frames", ())):
        if "codes" in frame:
            file = frame_name(entry["file"], number)
            yield {**about, "file": file, "objects": frame["objects"], "codes": frame["codes"]}


def _coco(pictures: Sequence[Entry]) -> dict[str, Any]:
    """COCO's instances with run-length codes, one per picture and phrase that is not empty."""
    phrases = sorted({item["phrase"] for entry in pictures for item in entry["objects"]})
    images: list[Entry] = []
    annotations: list[Entry] = []
    for number, entry in enumerate(pictures, 1):
        size = {"width": entry["width"], "height": entry["height"]}
        images.append({"id": number, "file_name": entry["file"], **size})
        for item, code in zip(entry["objects"], entry["codes"]):
            if not item["pixels"]:
                continue
            found = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": phrases.index(item["phrase"]) + 1,
                "segmentation": code,
                "area": item["pixels"],
                "bbox": coco_mask.toBbox({**code, "counts": code["counts"].encode()}).tolist(),
                "iscrowd": 0,
                "score": item["score"],
            }
            annotations.append(found)
    categories = [{"id": number, "name": phrase} for number, phrase in enumerate(phrases, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}
