"""The result folder: which units are finished, and how the next run continues.

`predictions.jsonl` has one line per unit (a file or a series), written after the unit's results, so a run may be killed
at any time; and one line per LabelMe file, written before that file, see `EditedLabels`. The main process writes there;
every other process writes to a rank file, which is merged when all are done or when the next run starts.
`predictions.json` and `coco.json` are written when a run ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools import mask as coco_mask

from vesselseg.errors import UserError
from vesselseg.output_folder import replace_text
from vesselseg.predict.edited_labels import EditedLabels

STATE_FILE, SUMMARY_FILE, COCO_FILE = "predictions.jsonl", "predictions.json", "coco.json"
RANK_FILES = "predictions.rank*.jsonl"
FORMAT = 6  # increase with every change of the result files: results of another format are predicted again
Entry = dict[str, Any]


class ResultFolder:
    """Entries by file. An entry has `file`, `name` and either `error` or `model`, `options`, `outputs` and results.

    A clip's entry has its results in `frames`, each with its own `name`. labels: knows which LabelMe files were edited.
    """

    def __init__(self, out: Path) -> None:
        self.out = Path(out)
        self.entries: dict[str, Entry] = {}
        self._state = self.out / STATE_FILE
        self._emptied: set[Path] = set()  # folders that results were deleted from
        self._appending = threading.Lock()
        self.labels = EditedLabels(self.out, self._append)

    @contextmanager
    def open(self, header: Mapping[str, Any]) -> Iterator[ResultFolder]:
        """Create the folder or continue it, and lock it; header: the fields of predictions.json about the whole run.

        Raises UserError if the folder contains something else, or another run is writing to it.
        """
        self._check()
        self.out.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.out, os.O_RDONLY)
        try:
            self._lock(lock)
            self.merge_rank_files()
            try:
                yield self
            finally:
                self._read_rank_files()
                self._summarise(header)
                self._remove_empty_folders()
        finally:
            os.close(lock)

    @contextmanager
    def open_for_rank(self, rank: int) -> Iterator[ResultFolder]:
        """The folder that the main process has opened, for another process, which writes to its rank file."""
        self._read(self.out / STATE_FILE)
        self._state = self.out / RANK_FILES.replace("*", str(rank))
        yield self

    def merge_rank_files(self) -> None:
        """Merge the rank files into predictions.jsonl; no other process may be writing."""
        self._read(self.out / STATE_FILE)
        rank_files = self._read_rank_files()
        replace_text(self.out / STATE_FILE, "".join(map(_line, [*self.labels.records(), *self.entries.values()])))
        for path in rank_files:
            path.unlink()

    def is_finished(self, file: str, size: int, sha256: str, model: str, options: Mapping[str, Any]) -> bool:
        """Whether all of the file's results exist and come from these bytes, this model and these options."""
        entry = self.entries.get(file, {"error": "unknown"})
        expected = {"bytes": size, "sha256": sha256, "model": model, "options": dict(options), "format": FORMAT}
        if "error" in entry or any(entry.get(key) != value for key, value in expected.items()):
            return False
        return all((self.out / name).is_file() and (self.out / name).stat().st_size for name in entry["outputs"])

    def add(self, entry: Entry) -> None:
        """Record a file as done or failed, and delete results of an earlier run that this one did not write.

        Edited LabelMe files are kept.
        """
        earlier = self.entries.get(entry["file"], {})
        for name in sorted(set(earlier.get("outputs", ())) - set(entry.get("outputs", ()))):
            if not self.labels.protects(name):
                (self.out / name).unlink(missing_ok=True)
                self._emptied.add((self.out / name).parent)
        self.entries[entry["file"]] = {**entry, "format": FORMAT}
        self._append(self.entries[entry["file"]])

    def _append(self, line: Entry) -> None:
        with self._appending, self._state.open("a", encoding="utf-8") as file:
            file.write(_line(line))

    def _check(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out} is a file; expected a folder")
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / STATE_FILE).is_file():
            raise UserError(f"{self.out} has no {STATE_FILE}, so it is no output of this tool; choose another folder")

    def _lock(self, folder: int) -> None:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.out}: another call is writing to it; wait, or choose another folder") from None
        except OSError:  # some network file systems cannot lock folders; there the user must avoid concurrent calls
            return

    def _read_rank_files(self) -> list[Path]:
        paths = sorted(self.out.glob(RANK_FILES))
        for path in paths:
            self._read(path)
        return paths

    def _read(self, path: Path) -> None:
        # Not splitlines: it also splits at U+2028 and similar characters, which JSON does not escape in names.
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # truncated by a kill or a full disk
                continue
            if _is_entry(entry):
                self.entries[entry["file"]] = entry
            else:
                self.labels.load_record(entry)

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
        images = [image for entry in entries for image in _images_with_codes(entry)]
        if images:
            replace_text(self.out / COCO_FILE, json.dumps(_coco(images), ensure_ascii=False) + "\n")
        else:
            (self.out / COCO_FILE).unlink(missing_ok=True)

    def _remove_empty_folders(self) -> None:
        """Only at the end of a run, when no thread is about to write to them."""
        for folder in self._emptied:
            while folder != self.out:
                try:
                    folder.rmdir()
                except OSError:  # not empty, or already removed
                    break
                folder = folder.parent


def frame_name(name: str, number: int) -> str:
    """The name of a clip's frame, counted from 0; name: the clip's."""
    return f"{name}/{number:05d}"


def assign_output_names(
    files: Sequence[str], tags: Sequence[str], known: Mapping[str, Entry], clips: Collection[str] = ()
) -> dict[str, str]:
    """File -> path of its results, without suffix, relative to the folder of each kind.

    The path is the file's without its suffix. Where two files would get the same one (a.png and a.jpg, or names that
    differ only in case), the later one keeps its suffix as in a_jpg. tags: suffixes that single results add. known:
    entries of earlier runs, whose names do not change. clips: files whose name may become a folder of frames, which
    must not be a folder of other files.
    """
    names: dict[str, str] = {}
    tags = ("", *tags)
    frames = [frame["name"] for entry in known.values() for frame in entry.get("frames", ())]
    taken = {f"{name}{tag}".casefold() for name in frames for tag in tags}
    folders = {str(folder).casefold() for file in (*known, *files) for folder in PurePosixPath(file).parents}
    for file in [*known, *(file for file in files if file not in known)]:
        earlier = str(known[file]["name"]) if file in known else None
        for name in _candidate_names(file, earlier):
            claimed = {f"{name}{tag}".casefold() for tag in tags}
            if not claimed & taken and (earlier == name or file not in clips or name.casefold() not in folders):
                break
        taken |= claimed
        names[file] = name
    return names


def _candidate_names(file: str, earlier: str | None) -> Iterator[str]:
    if earlier is not None:
        yield earlier
    stem = PurePosixPath(file).with_suffix("").as_posix()
    yield stem
    yield (with_suffix := f"{stem}_{PurePosixPath(file).suffix[1:] or 2}")
    yield from (f"{with_suffix}_{number}" for number in count(2))


def _line(entry: Entry) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _is_entry(entry: Any) -> bool:
    """Whether a line is a valid entry. Paths outside the folder are not valid, because results may be deleted."""
    if not isinstance(entry, dict) or not {"file", "name"} <= entry.keys():
        return False
    paths = [PurePosixPath(name) for name in entry.get("outputs", ())]
    return not any(path.is_absolute() or ".." in path.parts for path in paths)


def _without_codes(entry: Entry) -> Entry:
    """An entry as in predictions.json."""
    content = {key: value for key, value in entry.items() if key != "codes"}
    if "frames" in content:
        content["frames"] = [_without_codes(frame) for frame in content["frames"]]
    return content


def _images_with_codes(entry: Entry) -> Iterator[Entry]:
    """The image of an entry, or the frames of its clip, that have run-length codes; file: its name in coco.json."""
    size = {key: entry.get(key) for key in ("width", "height")}
    if "codes" in entry:
        yield {**size, **_origin(entry), "file": entry["file"], "objects": entry["objects"], "codes": entry["codes"]}
    for number, frame in enumerate(entry.get("frames", ())):
        if "codes" in frame:
            file = frame_name(entry["file"], number)
            yield {**size, **_origin(frame), "file": file, "objects": frame["objects"], "codes": frame["codes"]}


def _origin(entry: Entry) -> Entry:
    """What an entry says of its file, see `vesselseg.predict.frame_origins`."""
    return {key: entry[key] for key in ("source", "source_frame", "instance") if key in entry}


def _coco(pictures: Sequence[Entry]) -> dict[str, Any]:
    """COCO instances with run-length codes, one per image and phrase with a non-empty mask."""
    phrases = sorted({item["phrase"] for entry in pictures for item in entry["objects"]})
    images: list[Entry] = []
    annotations: list[Entry] = []
    for number, entry in enumerate(pictures, 1):
        size = {"width": entry["width"], "height": entry["height"]}
        images.append({"id": number, "file_name": entry["file"], **size, **_origin(entry)})
        for item, code in zip(entry["objects"], entry["codes"]):
            if not item["pixels"]:
                continue
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": phrases.index(item["phrase"]) + 1,
                "segmentation": code,
                "area": item["pixels"],
                "bbox": coco_mask.toBbox({**code, "counts": code["counts"].encode()}).tolist(),
                "iscrowd": 0,
                "score": item["score"],
            }
            annotations.append(annotation)
    categories = [{"id": number, "name": phrase} for number, phrase in enumerate(phrases, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}
