"""How a dataset folder is prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vesselseg.dataset.prompts import DEFAULT_PHRASE


@dataclass(frozen=True)
class PrepareOptions:
    """How to prepare; the options of tools/prepare_data.py.

    text: phrase of every label, and of pictures without any shape; None: DEFAULT_PHRASE, but LabelMe files that tell
    their phrases (those of tools/predict.py) keep them. labels: label -> phrase, or None to leave the label out; None:
    every label is `text`. fractions: train, val, test. group_regex: first capture group (or the match) in
    the path below the source. val_regex, test_regex: files that go to these splits as they are. per_shape: each shape
    (or group_id) an object of its own. line_width: pixels of the stored image. strict: any finding is an error.
    force: replace an existing dataset folder. max_gib, max_files: limits of an archive. workers: processes, 0 for all.
    format: one of readers.formats.FORMATS, "" to find out. masks: folders below the source that hold masks, the first
    observer's first. first_frame: number of a DICOM clip's first frame in the names of labels, None to find out.
    pseudonymise: names of files and groups become salted hashes; always so where the source holds DICOM.
    salt: file with the salt, made if it is not there; None: beside ``out``. key_table: file for pseudonym -> name.
    """

    text: str | None = None
    labels: Mapping[str, str | None] | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    group_regex: str = ""
    val_regex: str = ""
    test_regex: str = ""
    seed: int = 0
    per_shape: bool = False
    line_width: float | None = None
    strict: bool = False
    force: bool = False
    max_gib: float = 50.0
    max_files: int = 500_000
    workers: int = 0
    progress: bool = True
    format: str = ""
    masks: tuple[str, ...] = ()
    first_frame: int | None = None
    pseudonymise: bool = False
    salt: Path | None = None
    key_table: Path | None = None

    @property
    def default_phrase(self) -> str:
        """The phrase of labels that nothing else names."""
        return DEFAULT_PHRASE if self.text is None else self.text
