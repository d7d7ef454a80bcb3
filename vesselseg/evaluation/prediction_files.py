"""Read one prediction file as mask or probabilities: PNG, TIFF, NumPy, .npz of nnU-Net and MedSAM, NIfTI.

* ``.npy``, and ``.npz`` with a single array: floats are probabilities in 0..1; bool, and integers 0 and 1 or 0 and 255,
  are a mask. Shape (height, width), plus any axes of length 1.
* ``.npz`` of nnU-Net (``--save_probabilities``): ``probabilities`` (``softmax`` in version 1), (classes, 1, height,
  width). Two classes are background and vessel; they sum to 1, or to 0 outside the region that nnU-Net predicted. A
  single class is the vessel. ``.npz`` of MedSAM: ``segs``, a mask.
* PNG or TIFF of integers or a palette: all files of the *folder* together say whether they are masks or probabilities
  (value / 255 or 65535), see ``prediction_values``; numbers of classes and objects are refused without --mask-values.
  Colour files are accepted if all pixels are shades of one colour. TIFF of floats: probabilities in 0..1.
* ``.nii``, ``.nii.gz``: values as in .npy, axes see below.

NIfTI axes. The array is (columns, rows) or (columns, rows, 1): the first axis of NIfTI is x. If the header defines the
orientation, axes are reoriented so that columns run to the patient's left and rows to the back, as in DICOM, ITK and
nnU-Net: a file that another program flipped or transposed *together with* its header is read correctly. A header
without geometry (no qform and sform, or an identity orientation as ``nibabel.Nifti1Image(array, numpy.eye(4))`` writes
it) is ignored, and the array is used as stored. A square image saved as (rows, columns) cannot be detected: transpose
it before saving.
"""

from __future__ import annotations

import gzip
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vesselseg.imaging.codec_process import check_picture
from vesselseg.imaging.decode import FORMATS
from vesselseg.imaging.mask_evidence import Evidence, ValueKind, measure
from vesselseg.imaging.mask_files import raw_values
from vesselseg.imaging.mask_option import BY_EVIDENCE, MaskValues
from vesselseg.imaging.mask_values import Meaning, apply

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

Values = NDArray[np.generic]
_EIGHT_BIT_MASKS = ((0, 1), (0, 255))
_NIFTI_START = 1 << 20  # bytes with header and extensions
_CHANNELS = ("probabilities", "softmax")  # arrays of nnU-Net 2 and 1, (classes, ...)
_MASK = "segs"  # array of MedSAM
# Errors of NumPy's readers on damaged files.
_UNREADABLE = (
    ValueError,
    EOFError,
    OSError,
    SyntaxError,
    RuntimeError,
    TypeError,
    AttributeError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    struct.error,
)
LARGEST_BYTES = 1 << 30  # of an array once it is unpacked: a picture of 178 million pixels has less
_ROUNDING = 0.02  # nnU-Net resamples and stores 16-bit floats
_ANATOMY = (-1, -1, -1)  # left, posterior, inferior, against NIfTI's right, anterior, superior


@dataclass(frozen=True)
class Stored:
    """One prediction as stored in its file.

    scale: divisor that gives probabilities. kind: of integers that all files of the folder together explain
    (`prediction_values`); None: the file itself says what its values are: a mask, or probabilities.
    """

    values: Values  # (height, width)
    scale: float | None  # None for a mask
    kind: ValueKind | None = None

    def evidence(self) -> Evidence | None:
        """What its integers show; None where the file itself says what they are."""
        return None if self.kind is None else measure(self.values, self.kind)

    def probabilities(self, meaning: Meaning | None) -> NDArray[np.float32]:
        """(height, width) float32 in 0..1; meaning: of integers of its kind, None if they are probabilities."""
        if self.kind is not None and meaning is not None:
            classes, _ = apply(self.values, meaning, str)
            drawn = [bitmap for _, bitmap in classes]
            return np.any(drawn, axis=0).astype(np.float32) if drawn else np.zeros(self.values.shape, np.float32)
        if self.scale is None:
            return (self.values != 0).astype(np.float32)
        return np.divide(self.values, np.float32(self.scale)).astype(np.float32)


def suffix_of(name: str) -> str:
    """The suffix of a file name in ``READERS``, in lower case; "" for other files."""
    return next((suffix for suffix in READERS if name.lower().endswith(suffix)), "")


def read_prediction(path: Path, asked: MaskValues = BY_EVIDENCE) -> Stored:
    """Read a file with a suffix in ``READERS``; raises ValueError, whose message does not name the file.

    asked: what the user says about integers.
    """
    return READERS[suffix_of(path.name)](path, asked)


def _read_npy(path: Path, asked: MaskValues) -> Stored:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        values = None if zipped else np.array(_bounded(np.load(path, mmap_mode="r", allow_pickle=False)))
    except _UNREADABLE as error:
        raise ValueError(f"not readable as a NumPy array: {error}") from None
    if values is None:
        raise ValueError("an .npz file under another name")
    return _array(values, asked)


def _read_npz(path: Path, asked: MaskValues) -> Stored:
    try:
        with np.load(path, allow_pickle=False) as opened:
            names = list(opened)
            channels = next((name for name in _CHANNELS if name in names), None)
            chosen = channels or (_MASK if _MASK in names else names[0] if len(names) == 1 else None)
            if chosen is not None and _stored_bytes(opened, chosen) > LARGEST_BYTES:
                raise ValueError(f"{chosen} unpacks to more than {LARGEST_BYTES >> 20} MiB")
            values = None if chosen is None else opened[chosen]
    except _UNREADABLE as error:
        raise ValueError(f"not readable as an .npz file: {error}") from None
    if values is None:
        expected = ", ".join((*_CHANNELS, _MASK))
        raise ValueError(f"arrays {', '.join(names) or 'none'}; expected a single one, or one of {expected}")
    return Stored(_vessel_channel(values), 1.0) if channels else _array(values, asked)


def _bounded(values: Values) -> Values:
    """An array that is still on disk; raises ValueError if it is larger than any picture."""
    if values.nbytes > LARGEST_BYTES:
        raise ValueError(f"{values.dtype} {_sides(values)}: more than {LARGEST_BYTES >> 20} MiB")
    return values


def _stored_bytes(opened: Any, name: str) -> int:
    """Size of an array of an .npz file once it is unpacked."""
    return max((info.file_size for info in opened.zip.infolist() if info.filename in (name, f"{name}.npy")), default=0)


def _vessel_channel(values: Values) -> Values:
    """(classes, 1, height, width) or (classes, height, width) -> (height, width) float32 of the vessel."""
    if values.ndim < 3 or values.shape[0] not in (1, 2) or not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"{values.dtype} {_sides(values)}; expected probabilities as (2, 1, height, width): background and vessel"
        )
    planes = np.stack([_plane(channel) for channel in values]).astype(np.float32)  # (classes, height, width)
    if len(planes) == 2:
        total = planes.sum(axis=0)
        if np.minimum(np.abs(total - 1), np.abs(total)).max(initial=0) > _ROUNDING:
            raise ValueError("two classes that do not add up to 1; expected background and vessel")
    _check_range(planes, _ROUNDING)
    return np.clip(planes[-1], 0, 1)


def _array(values: Values, asked: MaskValues) -> Stored:
    """An array whose type defines its meaning: floats are probabilities, bool and integers a mask."""
    values = _plane(values)
    # Grey integers stay ambiguous in an array: 0..255 may be a scaled probability or a label map.
    if values.dtype == np.bool_ or np.issubdtype(values.dtype, np.integer):
        if not any(np.isin(values, pair).all() for pair in _EIGHT_BIT_MASKS):
            found = ", ".join(str(value) for value in np.unique(values)[:6])
            if not asked:
                raise ValueError(
                    f"integers {found}; expected a mask of 0 and 1 or of 0 and 255, or probabilities as float32; "
                    "--mask-values says what other values mean"
                )
            small = values.max(initial=0) < 256
            return Stored(values, 255.0 if small else 65535.0, "grey" if small else "deep")
        return Stored(values, None)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"expected floats, bool or integers, found {values.dtype}")
    _check_range(values)
    return Stored(values, 1.0)


def _check_range(values: Values, slack: float = 0.0) -> None:
    if values.size and not (values.min() >= -slack and values.max() <= 1 + slack):
        raise ValueError(f"values {values.min():.4g} to {values.max():.4g}, expected probabilities in 0..1")


def _plane(values: Values) -> Values:
    """The array without axes of length 1, (height, width)."""
    while values.ndim > 2 and 1 in values.shape:
        values = values.squeeze(axis=values.shape.index(1))
    if values.ndim != 2:
        raise ValueError(f"an array of {_sides(values)}; expected one image, (height, width)")
    return values


def _read_picture(path: Path, asked: MaskValues) -> Stored:
    try:
        check_picture(path)
        with Image.open(path, formats=FORMATS) as image:
            mode, pages = image.mode, getattr(image, "n_frames", 1)
            values, kind, _ = raw_values(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"not readable as an image: {error}") from None
    if pages > 1:
        raise ValueError(f"{pages} pages; expected one picture per file")
    if mode == "F":
        return _array(values, asked)
    if kind == "colour":
        raise ValueError("a colour image; expected a grey one (is it an overlay?)")
    if kind == "deep":
        _check_range(values / np.float32(65535))
    return Stored(values, 65535.0 if kind == "deep" else 255.0, kind)


def _read_nifti(path: Path, asked: MaskValues) -> Stored:
    import nibabel  # takes half a second to import

    unreadable = (*_UNREADABLE, nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError)
    try:
        _check_nifti(path)
        opened: Any = nibabel.load(path)
        sides = tuple(int(side) for side in opened.shape)
        if len(sides) < 2 or any(side != 1 for side in sides[2:]):
            values = None
        elif math.prod(sides) * opened.header.get_data_dtype().itemsize > LARGEST_BYTES:
            raise ValueError(f"{sides[0]} x {sides[1]} values: more than {LARGEST_BYTES >> 20} MiB")
        else:
            values = _upright(np.asanyarray(opened.dataobj).reshape(sides[:2]), opened)
    except unreadable as error:
        raise ValueError(f"not readable as NIfTI: {str(error) or type(error).__name__}") from None
    if values is None:
        found = " x ".join(str(side) for side in sides)
        raise ValueError(f"NIfTI of {found}; expected one slice: columns x rows, or columns x rows x 1")
    return _array(values, asked)


def _check_nifti(path: Path) -> None:
    """nibabel reads header extensions whole, whatever size they state: they must lie before the values."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        start = file.read(_NIFTI_START)
        order = "<" if start[:4] == (348).to_bytes(4, "little") else ">"
        if len(start) < 352 or not start[348]:
            return
        (values_at,), place = struct.unpack_from(f"{order}f", start, 108), 352
        while place + 8 <= min(values_at, len(start)):
            (size,) = struct.unpack_from(f"{order}i", start, place)
            if size < 8 or place + size > values_at or place + size > len(start):
                raise ValueError(f"a header extension of {size} bytes")
            place += size


def _upright(values: Values, opened: SpatialImage) -> Values:
    """A NIfTI slice, (first axis, second axis), as (rows, columns)."""
    import nibabel

    affine: Any = opened.affine
    if affine is None or _without_geometry(opened, affine):
        return values.T
    if not np.isfinite(affine).all():
        raise ValueError("the affine of its header is not finite")
    # (axis, (world axis, sign)): which direction of the patient each array axis follows
    directions = nibabel.io_orientation(affine)[:2]
    if not np.isfinite(directions).all():
        raise ValueError("the affine of its header leaves an axis without direction")
    for axis, (world, sign) in enumerate(directions):
        if sign != _ANATOMY[int(world)]:
            values = np.flip(values, axis)
    return values if directions[0, 0] > directions[1, 0] else values.T


def _without_geometry(opened: SpatialImage, affine: NDArray[np.float64]) -> bool:
    header: Any = opened.header
    coded = [int(header[name]) for name in ("qform_code", "sform_code")]
    return not any(coded) or np.array_equal(affine, np.diag(np.abs(np.diag(affine))))


def _sides(values: Values) -> str:
    return " x ".join(str(side) for side in values.shape)


READERS: dict[str, Callable[[Path, MaskValues], Stored]] = {
    ".png": _read_picture,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
    ".tif": _read_picture,
    ".tiff": _read_picture,
}
"""Reader by suffix."""
