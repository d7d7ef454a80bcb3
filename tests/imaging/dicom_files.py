"""Small DICOM files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, XRayAngiographicImageStorage

from tests.prepare.label_formats import HEIGHT, WIDTH


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
