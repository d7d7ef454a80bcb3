"""The header of a DICOM file checked against its pixel data: what is stored counts, and a difference becomes a note.

Checked are number of frames, size, bits, samples and transfer syntax. Elements without which pixels cannot be read get
the value that the pixel data suggest.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import Dataset, dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from vesselseg.imaging.codestreams import HEAD, Codestream, read_codestream
from vesselseg.imaging.dicom_display import usable_photometric
from vesselseg.imaging.dicom_elements import has, number
from vesselseg.imaging.notes import Note

_UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = b"\xe0\x7f\x10\x00"  # the element's tag
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_READ_BY_PYDICOM = (
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PlanarConfiguration",
)
_MOST_BITS = 16
_PADDING = 64  # bytes that may follow the last frame without being worth a note


@dataclass
class Content:
    """header: corrected in place. options: of pydicom's `pixel_array`, where it would read the file's own header."""

    header: Dataset
    frames: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    rewritten: bytes | None = None  # the file to decode instead, if its transfer syntax is wrong
    readable_in_place: bool = True  # whether pydicom can read single frames from the file

    def correct(self, keyword: str, option: str, value: Any) -> None:
        """Set an element of the header, and what pydicom reads in its place."""
        setattr(self.header, keyword, value)
        self.options[option] = value

    def replace(self, keyword: str, option: str, value: int, what: str) -> None:
        """Correct an element that says something else, which is a difference."""
        said = number(self.header, keyword)
        if said != value:
            self.correct(keyword, option, value)
            self.differences.append(f"{what} {value}, the header says {'nothing' if said is None else f'{said:g}'}")


def check_content(header: Dataset, source: Path | bytes) -> Content:
    """Compare header and pixel data. Nothing is decoded and no more than the beginning of frames is read."""
    content = Content(header)
    _complete(content)
    with _pixel_data(header, source) as (data, length, complete):
        start = data.tell()
        encapsulated = data.read(4) == _ITEM
        data.seek(start)
        syntax = header.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
        if encapsulated and (syntax.is_encapsulated or length == _UNDEFINED):
            _check_compressed(content, data, syntax)
        else:
            if syntax.is_encapsulated:
                _correct_syntax(content, ExplicitVRLittleEndian, syntax)
            _check_native(content, length, complete)
    photometric, notes = usable_photometric(header)
    content.correct("PhotometricInterpretation", "photometric_interpretation", photometric)
    unreadable = any(has(header, name) and number(header, name) is None for name in _READ_BY_PYDICOM)
    content.correct("NumberOfFrames", "number_of_frames", content.frames)
    element = header.get_item("PixelData", keep_deferred=True)
    mistaken = isinstance(element, RawDataElement) and element.is_implicit_VR != syntax.is_implicit_VR
    if unreadable or mistaken:  # pydicom would stop at either where it reads a single frame from the file
        content.readable_in_place = False
        if encapsulated and content.rewritten is None:
            content.rewritten = _rewrite(header, header.file_meta.TransferSyntaxUID)
    if content.differences:
        content.notes.append(Note("dicom_header", f"the pixel data count: {'; '.join(content.differences)}"))
    content.notes += notes
    return content


def _complete(content: Content) -> None:
    """Elements that the standard demands and some files lack."""
    header = content.header
    header.ensure_file_meta()
    samples = number(header, "SamplesPerPixel")
    if samples not in (1, 3, 4):
        content.correct("SamplesPerPixel", "samples_per_pixel", 1)
    if not number(header, "BitsAllocated"):
        bits = number(header, "BitsStored") or 8
        content.replace("BitsAllocated", "bits_allocated", 8 if bits <= 8 else 16, "bits allocated:")
    allocated = int(number(header, "BitsAllocated") or 8)
    stored = int(number(header, "BitsStored") or 0)
    if allocated == 8 < stored <= 16:
        content.replace("BitsAllocated", "bits_allocated", 16, "bits allocated:")
    elif not 1 <= stored <= allocated:
        content.replace("BitsStored", "bits_stored", allocated, "bits stored:")
    if number(header, "PixelRepresentation") not in (0, 1):
        content.correct("PixelRepresentation", "pixel_representation", 0)
    if number(header, "SamplesPerPixel") == 3 and number(header, "PlanarConfiguration") not in (0, 1):
        content.correct("PlanarConfiguration", "planar_configuration", 0)


@contextmanager
def _pixel_data(header: Dataset, source: Path | bytes) -> Iterator[tuple[BinaryIO, int, bool]]:
    """Yields (file at the value, length that the file states, whether that length is there in full)."""
    element = header.get_item("PixelData", keep_deferred=True)
    assert element is not None
    if element.value is not None:
        value = bytes(element.value)
        stated = element.length if isinstance(element, RawDataElement) else len(value)
        yield io.BytesIO(value), stated if stated == _UNDEFINED else len(value), stated in (len(value), _UNDEFINED)
        return
    assert isinstance(element, RawDataElement) and isinstance(source, Path)
    with source.open("rb") as file:
        left = file.seek(0, io.SEEK_END) - element.value_tell
        file.seek(element.value_tell)
        undefined = element.length == _UNDEFINED
        yield file, element.length if undefined else min(element.length, left), undefined or element.length <= left


def _check_native(content: Content, length: int, complete: bool) -> None:
    header = content.header
    claimed = max(1, int(number(header, "NumberOfFrames") or 1))
    pixels = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel)
    allocated = int(header.BitsAllocated)
    if allocated == 16 and complete and length in (claimed * pixels, claimed * pixels + 1) and pixels > 1:
        content.replace("BitsAllocated", "bits_allocated", 8, "bits allocated:")
        content.replace("BitsStored", "bits_stored", 8, "bits stored:")
        allocated = 8
    halved = 2 if header.get("PhotometricInterpretation") == "YBR_FULL_422" else 3
    bits = pixels * allocated * (halved if header.SamplesPerPixel == 3 else 3) // 3
    stored = length * 8 // max(1, bits)
    content.frames = stored or claimed
    content.options["correct_unused_bits"] = False  # pydicom would drop bits that `pixel_bits` decides on
    if stored:
        _compare_frames(content, claimed, stored, complete)
        excess = length - (stored * bits + 7) // 8
        if excess > _PADDING and complete:
            content.differences.append(f"{excess} bytes follow the last whole frame, so its size may be another one")


def _compare_frames(content: Content, claimed: int, stored: int, complete: bool) -> None:
    if claimed == stored:
        return
    said = "nothing" if number(content.header, "NumberOfFrames") is None else str(claimed)
    cut = "" if complete else "; the file is truncated"
    content.differences.append(f"holds {stored} frames, the header says {said}{cut}")


@dataclass(frozen=True)
class _Fragment:
    """offset: from the first fragment's item tag. stream: of a frame that begins here."""

    offset: int
    length: int
    stream: Codestream | None


def _check_compressed(content: Content, data: BinaryIO, syntax: UID) -> None:
    header = content.header
    offsets, fragments, complete = _read_fragments(data)
    begun = [fragment for fragment in fragments if fragment.stream is not None]
    claimed = max(1, int(number(header, "NumberOfFrames") or 1))
    stored = len(begun) or min(claimed, max(1, len(fragments)))
    content.frames = stored
    _compare_frames(content, claimed, stored, complete)
    if stored == len(fragments) > 1 and offsets not in ([], [fragment.offset for fragment in fragments]):
        content.differences.append("the table of frame offsets is wrong")
        content.options["extended_offsets"] = (
            [fragment.offset for fragment in fragments],
            [fragment.length for fragment in fragments],
        )
    if begun and begun[0].stream is not None:
        _compare_stream(content, begun[0].stream)
        if syntax not in begun[0].stream.syntaxes:
            _correct_syntax(content, UID(begun[0].stream.syntaxes[0]), syntax)


def _read_fragments(data: BinaryIO) -> tuple[list[int], list[_Fragment], bool]:
    """(offset table, fragments that are there in full, whether all are)."""
    end = _end_of(data)
    table: list[int] | None = None
    fragments: list[_Fragment] = []
    first = 0
    while True:
        tag, raw = data.read(4), data.read(4)
        if tag != _ITEM or len(raw) < 4:
            return table or [], fragments, tag in (_END, b"")
        length, start = struct.unpack("<L", raw)[0], data.tell()
        if start + length > end:
            # The decoder says what is wrong with a single frame.
            last = [] if fragments else [_Fragment(start - 8 - first, end - start, read_codestream(data.read(HEAD)))]
            return table or [], [*fragments, *last], False
        if table is None:
            table, first = [value for (value,) in struct.iter_unpack("<L", data.read(length // 4 * 4))], start + length
        else:
            stream = read_codestream(data.read(min(length, HEAD)))
            fragments.append(_Fragment(start - 8 - first, length, stream))
        data.seek(start + length)


def close_pixel_data(content: bytes) -> bytes:
    """The bytes of a file that ends within compressed pixel data, with the end that pydicom looks for."""
    return content + _END + bytes(4)


def _end_of(data: BinaryIO) -> int:
    position = data.tell()
    end = data.seek(0, io.SEEK_END)
    data.seek(position)
    return end


def _compare_stream(content: Content, stream: Codestream) -> None:
    header = content.header
    if stream.bits > _MOST_BITS:
        return  # damaged: the decoder says what is wrong
    if stream.rows and stream.columns:
        content.replace("Rows", "rows", stream.rows, "rows:")
        content.replace("Columns", "columns", stream.columns, "columns:")
    if stream.samples in (1, 3) and stream.samples != header.SamplesPerPixel:
        content.replace("SamplesPerPixel", "samples_per_pixel", stream.samples, "samples per pixel:")
        colour = "YBR_FULL" if stream.syntaxes[0].endswith((".50", ".51")) else "RGB"
        header.PhotometricInterpretation = "MONOCHROME2" if stream.samples == 1 else colour
        content.correct("PlanarConfiguration", "planar_configuration", 0)
    if stream.bits > int(header.BitsAllocated):
        content.replace("BitsAllocated", "bits_allocated", 16, "bits allocated:")
        content.replace("BitsStored", "bits_stored", stream.bits, "bits stored:")
    elif 0 < stream.bits < int(header.BitsStored):  # more is usual: a codec's 16 for 12 that are stored
        content.replace("BitsStored", "bits_stored", stream.bits, "bits stored:")


def _correct_syntax(content: Content, used: UID, said: UID) -> None:
    content.differences.append(f"stored as {used.name}, the header says {said.name}")
    content.header.file_meta.TransferSyntaxUID = used
    content.readable_in_place = False
    if used.is_encapsulated:
        content.rewritten = _rewrite(content.header, used)


def _rewrite(header: Dataset, syntax: UID) -> bytes:
    """A file with the same pixel data and another transfer syntax."""
    copy, meta = Dataset(), FileMetaDataset()
    for tag in [tag for tag in header.keys() if tag.group == 0x0028 and tag.element < 0x1000]:  # noqa: SIM118 - raw
        copy[tag] = header[tag]
    copy.PixelData = header.PixelData
    copy["PixelData"].VR, copy["PixelData"].is_undefined_length = "OB", True
    meta.TransferSyntaxUID = syntax
    copy.file_meta = meta
    buffer = io.BytesIO()
    dcmwrite(buffer, copy, enforce_file_format=False)
    return buffer.getvalue()
