"""Drawn DICOM headers, displayed by vesselseg, by dcmtk's dcm2pnm and by pydicom's functions.

python -m tests.imaging.dicom_readers      # the table of docs/results.md
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.pixels import pixel_array
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import SecondaryCaptureImageStorage, XRayAngiographicImageStorage, XRayRadiofluoroscopicImageStorage

from tests.imaging.dicom_files import frames, write_dicom
from vesselseg.imaging.dicom import read_frame
from vesselseg.imaging.eight_bits import scale_to_uint8

READERS = ("dcm2pnm", "pydicom")
BIPLANE = "1.2.840.10008.5.1.4.1.1.12.3"
PROJECTIONS = (XRayAngiographicImageStorage, XRayRadiofluoroscopicImageStorage, BIPLANE)
WINDOW = {"WindowCenter": 1800, "WindowWidth": 3000}
_DEEP = frames(high=4095)


@dataclass(frozen=True)
class Header:
    """One drawn file. options: of dcm2pnm. differs: reader -> why it shows something else; others agree within 1."""

    name: str
    fields: dict[str, Any]
    pixels: np.ndarray = field(default_factory=lambda: _DEEP)
    bits: int = 12
    options: tuple[str, ...] = ("+Wi", "1")
    frame: int = 0
    differs: dict[str, str] = field(default_factory=dict)


def _table(**fields: Any) -> Sequence:
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [4096, 0, 16], "US"
    item["LUTDescriptor"].VR = "US"
    item.LUTData = (65535 - np.arange(4096) ** 2 // 256).astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    for name, value in fields.items():
        setattr(item, name, value)
    return Sequence([item])


def _palette() -> dict[str, Any]:
    fields: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, ramp in (("Red", np.arange(256)), ("Green", np.arange(256)[::-1]), ("Blue", np.full(256, 77))):
        fields[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        fields[f"{colour}PaletteColorLookupTableData"] = (ramp * 257).astype("<u2").tobytes()
    return fields


def _colour() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, 30, 40, 3), dtype=np.uint8)


_COUNTED = "counted in the range by both"
_REFUSED = "refused by pydicom"
OTHER = {"SOPClassUID": SecondaryCaptureImageStorage}
PADDED = np.concatenate([np.full((1, 5, 40), 0, np.uint16), _DEEP[:, 5:] // 2 + 1000], axis=1)
HEADERS = (
    Header("8 bits", {}, frames(), 8, ()),
    Header("8 bits, MONOCHROME1", {"PhotometricInterpretation": "MONOCHROME1"}, frames(), 8, ()),
    Header("12 bits without a window", {}, options=("+Wm",)),
    Header("window", WINDOW),
    Header("window, MONOCHROME1", {**WINDOW, "PhotometricInterpretation": "MONOCHROME1"}),
    Header("two windows, the first one", {"WindowCenter": [900, 2000], "WindowWidth": [400, 90]}),
    Header("window of width 1", {"WindowCenter": 2000, "WindowWidth": 1}),
    Header("window, SIGMOID", {**WINDOW, "VOILUTFunction": "SIGMOID"}),
    Header(
        "window, LINEAR_EXACT",
        {"WindowCenter": 1800, "WindowWidth": 40, "VOILUTFunction": "LINEAR_EXACT"},
        differs={"dcm2pnm": "read as LINEAR by dcm2pnm"},
    ),
    Header("signed, window", {"WindowCenter": -100, "WindowWidth": 900}, (_DEEP.astype("i2") - 2048).astype("i2"), 16),
    Header("signed, sign not extended", WINDOW, (_DEEP.astype("i2") - 2048) & np.int16(0xFFF)),
    Header("VOI LUT", {"VOILUTSequence": _table()}, options=("+Wl", "1")),
    Header(
        "XA, LOG, modality LUT, window",
        {**WINDOW, "ModalityLUTSequence": _table(), "PixelIntensityRelationship": "LOG"},
    ),
    Header(
        "XRF, rescale, window", {**WINDOW, "SOPClassUID": PROJECTIONS[1], "RescaleSlope": 2, "RescaleIntercept": 50}
    ),
    Header("biplane, modality LUT, window", {**WINDOW, "SOPClassUID": BIPLANE, "ModalityLUTSequence": _table()}),
    Header("secondary capture, rescale, window", {**OTHER, **WINDOW, "RescaleSlope": 0.5, "RescaleIntercept": 900}),
    Header(
        "secondary capture, modality LUT, window",
        {**OTHER, "ModalityLUTSequence": _table(), "WindowCenter": 40000, "WindowWidth": 50000},
    ),
    Header(
        "window without a number, then a usable one",
        {"WindowCenter": ["", 1800], "WindowWidth": ["", 3000]},
        options=("+Wi", "2"),
        differs={"pydicom": _REFUSED},
    ),
    Header("window of width 0", {"WindowCenter": 1800, "WindowWidth": 0}, differs={"pydicom": _REFUSED}),
    Header("VOI LUT without an item, window", {**WINDOW, "VOILUTSequence": Sequence([])}),
    Header(
        "no photometric interpretation, window",
        {**WINDOW, "PhotometricInterpretation": ""},
        differs={"dcm2pnm": "refused by dcm2pnm", "pydicom": _REFUSED},
    ),
    Header(
        "padding, without a window",
        {"PixelPaddingValue": 0},
        PADDED,
        options=("+Wm",),
        differs={"dcm2pnm": _COUNTED, "pydicom": _COUNTED},
    ),
    Header(
        "left-justified bits, window",
        {**WINDOW, "HighBit": 15},
        _DEEP << 4,
        differs={"pydicom": "HighBit ignored by pydicom"},
    ),
    Header("clip, third frame, window", WINDOW, frames(3, high=4095), frame=2),
    Header(
        "RGB", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}, _colour(), 8, ()
    ),
    Header("PALETTE COLOR", _palette(), frames(), 8, ()),
)


def differences(header: Header, folder: Path, reader: str) -> int | None:
    """Largest difference of a grey value between a reader and us; None if the reader shows nothing."""
    path = folder / "drawn.dcm"
    write_dicom(path, header.pixels, bits=header.bits, **header.fields)
    own = np.asarray(read_frame(path, header.frame if len(header.pixels) > 1 else None).pixels).astype(int)
    values = _dcm2pnm(path, header, folder) if reader == "dcm2pnm" else _pydicom(path, header.frame)
    if values is None or values.shape != own.shape:
        return None
    return int(np.abs(values.astype(int) - own).max())


def _dcm2pnm(path: Path, header: Header, folder: Path) -> np.ndarray | None:
    arguments = ["+op", "+F", str(header.frame + 1), *header.options, str(path), str(folder / "drawn.pnm")]
    (folder / "drawn.pnm").unlink(missing_ok=True)
    done = subprocess.run(["dcm2pnm", *arguments], capture_output=True, text=True, check=False)
    if done.returncode or not (folder / "drawn.pnm").is_file():
        return None
    with Image.open(folder / "drawn.pnm") as opened:
        return np.asarray(opened)


def _pydicom(path: Path, frame: int) -> np.ndarray | None:
    """pydicom's functions in the order of PS3.4, N.2; the rule for projections is left to its user."""
    try:
        header = dcmread(path)
        values = pixel_array(path, index=frame)
        if header.PhotometricInterpretation == "PALETTE COLOR":
            return scale_to_uint8(apply_color_lut(values, header), 0, 65535)
        if values.ndim == 3:
            return values
        if header.SOPClassUID not in PROJECTIONS:
            values = apply_modality_lut(values, header)
        shown = apply_voi_lut(values, header)
        ends = _output_range(header, values, shown)
    except Exception:  # pydicom raises many types for unusable elements
        return None
    grey = scale_to_uint8(shown, *ends)
    return 255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey


def _output_range(header: Dataset, values: np.ndarray, shown: np.ndarray) -> tuple[float, float]:
    if "VOILUTSequence" in header and header.VOILUTSequence:
        return 0, 2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
    if "WindowCenter" in header:
        far = np.array([-1e9, 1e9]) if values.dtype.kind == "f" else np.array([-(2**31), 2**31])
        low, high = apply_voi_lut(np.concatenate([values.ravel().astype(np.float64), far]), header)[-2:]
        return float(low), float(high)
    return (0, 255) if header.BitsStored == 8 else (float(shown.min()), float(shown.max()))


def table_rows() -> Iterator[str]:
    """The Markdown table."""
    yield f"| header | {' | '.join(READERS)} | |"
    yield "|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        for header in HEADERS:
            found = [differences(header, Path(folder), reader) for reader in READERS]
            shown = ["nothing shown" if number is None else str(number) for number in found]
            yield f"| {header.name} | {' | '.join(shown)} | {'; '.join(dict.fromkeys(header.differs.values()))} |"


if __name__ == "__main__":
    print("\n".join(table_rows()))
