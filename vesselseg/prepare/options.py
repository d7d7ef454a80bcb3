"""Options of preparing a dataset folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vesselseg.dataset.prompts import DEFAULT_PHRASE
from vesselseg.imaging.mask_option import BY_EVIDENCE, MaskValues
from vesselseg.imaging.regions import DEFAULT_FILL, Fill


@dataclass(frozen=True)
class PrepareOptions:
    """How to prepare; light to import, because the command line declares its options with it.

    Labels become phrases by `labels`, else by `text`, else LabelMe files that store the phrases of a prediction keep
    their labels, and all other labels become DEFAULT_PHRASE.
    """

    text: str | None = None
    """phrase of labels without --labels and of pictures without shapes (default: blood vessel, or predict's phrases)"""
    labels: Mapping[str, str | None] | None = None
    """MAP.yaml with label: phrase, or label: null to leave it out; labels that it does not name are an error"""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """shares of train,val,test, which add up to 1 or to 100; 0,0,1 makes an external test set"""
    group_regex: str = ""
    """patient or clip: the first (...) or the whole match; a group is never on two sides, e.g. '(p[0-9]+)_'"""
    val_regex: str = ""
    """files that are the val split, as they are"""
    test_regex: str = ""
    """files that are the test split, as they are; the rest is shared out among the other splits"""
    seed: int = 0
    """of the split"""
    per_shape: bool = False
    """each shape (or group_id) is an object; otherwise all shapes of one phrase are one object"""
    line_width: float | None = None
    """draw lines and points this wide, in pixels of the image; without it they are left out and listed"""
    fill: Fill = DEFAULT_FILL
    """pixels of a polygon. labelme: all it touches; coco: as papers score; coverage: covered parts, for training"""
    fill_masks: Path | None = None
    """folder with masks that the makers exported of the same polygons: the fill that gives them replaces --fill"""
    strict: bool = False
    """any finding is an error, nothing is written"""
    force: bool = False
    """replace an existing dataset folder"""
    max_gib: float = 50.0
    """size limit of the unpacked archive"""
    max_files: int = 500_000
    """file limit of an archive"""
    workers: int = 0
    """processes (0: one per core)"""
    quiet: bool = False
    """no progress bar"""
    format: str = ""
    """of the labels (default: detected); dicom: DICOM pictures only, even where there are other pictures"""
    masks: tuple[str, ...] = ()
    """folder below SOURCE with mask images (default: detected); once more for each further observer"""
    mask_values: MaskValues = BY_EVIDENCE
    """of masks: binary, classes, objects, probability, ignore=255 or classes,ignore=255 (default: by evidence)"""
    first_frame: Literal[0, 1] | None = None
    """number of a DICOM clip's first frame in the names of labels (default: 0 where a label is of frame 0, else 1)"""
    pseudonymise: bool = False
    """hash the names of files and groups"""
    salt: Path | None = None
    """file with the salt, made if it does not exist; the same salt gives the same names (default: OUT.salt)"""
    key_table: Path | None = None
    """CSV file to write which name became which hash; keep it and the salt apart from the data"""

    @property
    def default_phrase(self) -> str:
        """The phrase of labels without an explicit one."""
        return DEFAULT_PHRASE if self.text is None else self.text
