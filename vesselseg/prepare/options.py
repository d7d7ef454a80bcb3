"""Options of preparing a dataset folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vesselseg.dataset.prompts import DEFAULT_PHRASE


@dataclass(frozen=True)
class PrepareOptions:
    """Options of tools/prepare_data.py.

    Labels become phrases by `labels`, else by `text`, else LabelMe files that store the phrases of a prediction keep
    their labels, and all other labels become DEFAULT_PHRASE.
    """

    text: str | None = None  # phrase of every label, and of images without shapes
    labels: Mapping[str, str | None] | None = None  # label -> phrase, or None to leave the label out
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)  # of train, val, test
    group_regex: str = ""  # its first capture group (or match) in the path below the source is the group
    val_regex: str = ""  # files that are put into the validation split
    test_regex: str = ""  # files that are put into the test split
    seed: int = 0  # of the split
    per_shape: bool = False  # each shape (or group_id) is an object of its own
    line_width: float | None = None  # of lines and points, pixels of the stored image; None leaves them out
    strict: bool = False  # any finding is an error
    force: bool = False  # replace an existing dataset folder
    max_gib: float = 50.0  # largest expanded size of an archive
    max_files: int = 500_000  # largest number of files in an archive
    workers: int = 0  # processes, 0 for all cores
    progress: bool = True  # show a progress bar
    format: str = ""  # one of readers.formats.FORMATS, "" to detect it
    masks: tuple[str, ...] = ()  # folders below the source that contain masks, those of the first observer first
    first_frame: int | None = None  # number of a DICOM clip's first frame in label names, None to detect it
    pseudonymise: bool = False  # replace names by salted hashes; always done for sources with DICOM
    salt: Path | None = None  # file with the salt, created if missing; None: next to the output folder
    key_table: Path | None = None  # file to write pseudonym -> name to

    @property
    def default_phrase(self) -> str:
        """The phrase of labels without an explicit one."""
        return DEFAULT_PHRASE if self.text is None else self.text
