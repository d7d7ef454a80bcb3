"""Small DICOM files for tests."""

from __future__ import annotations

import base64
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, XRayAngiographicImageStorage

from tests.prepare.label_formats import HEIGHT, WIDTH

# A test file of pydicom (MIT), JPEG-LS with changed bytes, at which GDCM ends its process.
ABORTING = zlib.decompress(
    base64.b85decode(
        "c-qC1y-ve05XUc0R3ZeZ0aT%?Lxv)Cvh2iZoQbMMg-VoGL><@=>cYyvnhrb$3s1l!z$38nAt7aCWCICQb52nQ2JnEyMb7<W|9tk{"
        "1>k>eyVvOx^rJloZqXC4V9?ec%_8VWy((}TP$?MYj4??g%BjG?X^iVO60I2#G$}GPY)ZyNNF^1Cq+!H^BoT~<OeRqf$~X=Jfj|_>"
        "DB&DqiXbLX#yFL4C+ROiB`2_otF<3a;dqlZNOxCYc!)U-`hJKM^IfR?l7R~wf098%*DBTZXn+Hq)PaMYw%>qKF$*|bF4P#6H&<Y3"
        "<)X6YiWF)Am2J)T=2^Muib9(z$epk5X}yksx>wKOr^8;it2<}o(pZm0x1_gk>Vbr-dy4EUcnX2BZFxXEusu+Zuw+|BHwl5WYn7Qi"
        "@A@@qLG8wHgUUY0<Z{axhJBKm!f$YKZhVawi%a9kIXONxW!2HLxHE;PP_J(qM{ZS5u8b?E9;WIk*Z;^Tck8BA"
    )
)


def frames(count: int = 1, high: int = 255, seed: int = 0) -> np.ndarray:
    """(count, height, width) random values from 0 to high."""
    values = np.random.default_rng(seed).integers(0, high + 1, (count, HEIGHT, WIDTH))
    return values.astype(np.uint8 if high < 256 else np.uint16)


def write_dicom(path: Path, pixels: np.ndarray, bits: int = 8, **fields: Any) -> FileDataset:
    """A file with pixels (frames, height, width) and any further elements of the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = XRayAngiographicImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = XRayAngiographicImageStorage, "1.2.3.4"
    header.Rows, header.Columns = pixels.shape[1:3]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = 8 * pixels.dtype.itemsize
    header.BitsStored, header.HighBit = bits, bits - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    if len(pixels) > 1:
        header.NumberOfFrames = len(pixels)
    for name, value in fields.items():
        setattr(header, name, value)
    header.PixelData = pixels.tobytes()
    header.save_as(path, enforce_file_format=True)
    return header


def write_jpeg_dicom(path: Path, pixels: np.ndarray, **fields: Any) -> list[np.ndarray]:
    """Frames as baseline JPEG; returns what Pillow decodes of them."""
    encoded = []
    for frame in pixels:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=95)
        encoded.append(buffer.getvalue())
    header = write_dicom(path, pixels, **fields)
    header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    header.PixelData = encapsulate(encoded)
    header["PixelData"].is_undefined_length = True
    header.save_as(path, enforce_file_format=True)
    return [np.asarray(Image.open(io.BytesIO(one))) for one in encoded]
