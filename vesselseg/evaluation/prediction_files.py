"""Read one prediction file as mask or probabilities: PNG, TIFF, NumPy, .npz of nnU-Net and MedSAM, NIfTI.

* ``.npy``, and ``.npz`` with a single array: floats are probabilities in 0..1; bool, and integers 0 and 1 or 0 and 255,
  are a mask. Shape (height, width), plus any axes of length 1.
* ``.npz`` of nnU-Net (``--save_probabilities``): ``probabilities`` (``softmax`` in version 1), (classes, 1, height,
  width). Two classes are background and vessel; they sum to 1, or to 0 outside the region that nnU-Net predicted. A
  single class is the vessel. ``.npz`` of MedSAM: ``segs``, a mask.
* 1-bit and palette PNG or TIFF: a mask; index 0 is background, all others are vessel.
* 8-bit and 16-bit PNG or TIFF: masks where all values of the *folder* are 0, 1 or the largest value (255 or 65535;
  255 in 16 bits too), else probability = value / largest value; ``prediction_folder`` settles which. Colour files
  are accepted if their channels are equal. TIFF of floats: probabilities in 0..1.
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

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

Values = NDArray[np.generic]
_EIGHT_BIT_MASKS = ((0, 1), (0, 255))
_PICTURE_MASK = (0, 1, 255, 65535)
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
    """One prediction as stored in its file."""

    values: Values  # (height, width)
    scale: float | None  # divisor that gives probabilities; None for a mask
    undecided: bool = False  # values fit both a mask and a very dark probability map

    @property
    def kind(self) -> str:
        """ "mask", "picture of probabilities" (scaled integers) or "probabilities"."""
        if self.scale is None or self.undecided:
            return "mask"
        return "picture of probabilities" if self.scale > 1 else "probabilities"

    def probabilities(self, as_probabilities: bool) -> NDArray[np.float32]:
        """(height, width) float32 in 0..1; as_probabilities: how undecided pictures are read."""
        if self.scale is None or (self.undecided and not as_probabilities):
            return (self.values != 0).astype(np.float32)
        return np.divide(self.values, np.float32(self.scale)).astype(np.float32)


def suffix_of(name: str) -> str:
    """The suffix of a file name in ``READERS``, in lower case; "" for other files."""
    return next((suffix for suffix in READERS if name.lower().endswith(suffix)), "")


def read_prediction(path: Path) -> Stored:
    """Read a file with a suffix in ``READERS``; raises ValueError, whose message does not name the file."""
    return READERS[suffix_of(path.name)](path)


def _read_npy(path: Path) -> Stored:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        values = None if zipped else np.array(_bounded(np.load(path, mmap_mode="r", allow_pickle=False)))
    except _UNREADABLE as error:
        raise ValueError(f"not readable as a NumPy array: {error}") from None
    if values is None:
        raise ValueError("an .npz file under another name")
    return _array(values)


def _read_npz(path: Path) -> Stored:
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
    return Stored(_vessel_channel(values), 1.0) if channels else _array(values)


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


def _array(values: Values) -> Stored:
    """An array whose type defines its meaning: floats are probabilities, bool and integers a mask."""
    values = _plane(values)
    # Grey integers stay ambiguous in an array: 0..255 may be a scaled probability or a label map.
    if values.dtype == np.bool_ or np.issubdtype(values.dtype, np.integer):
        if not any(np.isin(values, pair).all() for pair in _EIGHT_BIT_MASKS):
            found = ", ".join(str(value) for value in np.unique(values)[:6])
            raise ValueError(
                f"integers {found}; expected a mask of 0 and 1 or of 0 and 255, or probabilities as float32"
            )
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


def _read_picture(path: Path) -> Stored:
    try:
        check_picture(path)
        with Image.open(path, formats=FORMATS) as image:
            mode, pages = image.mode, getattr(image, "n_frames", 1)
            values = np.asarray(image.convert("L") if mode == "1" else image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"not readable as an image: {error}") from None
    if pages > 1:
        raise ValueError(f"{pages} pages; expected one picture per file")
    if mode in ("1", "P"):
        return Stored(values, None)
    if mode == "F":
        return _array(values)
    if mode.startswith("I"):
        _check_range(values / np.float32(65535))
        return _picture(values, 65535.0)
    if mode in ("RGB", "RGBA", "LA"):
        values = _grey(values, mode)
    elif mode != "L":
        raise ValueError(f"picture mode {mode}; expected 1-bit, palette, 8-bit or 16-bit grey")
    return _picture(values, 255.0)


def _picture(values: Values, scale: float) -> Stored:
    return Stored(values, scale, undecided=bool(np.isin(values, _PICTURE_MASK).all()))


def _grey(values: Values, mode: str) -> Values:
    colours = values[..., : 1 if mode == "LA" else 3]
    if (colours != colours[..., :1]).any():
        raise ValueError("a colour image; expected a grey one (is it an overlay?)")
    return colours[..., 0]


def _read_nifti(path: Path) -> Stored:
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
    return _array(values)


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


READERS: dict[str, Callable[[Path], Stored]] = {
    ".png": _read_picture,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
    ".tif": _read_picture,
    ".tiff": _read_picture,
}
"""Reader by suffix."""
