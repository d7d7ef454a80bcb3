"""What a compressed frame says about itself: size, bits, samples and format of JPEG, JPEG-LS, JPEG 2000 and RLE."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_JPEG = "1.2.840.10008.1.2.4."
# Start-of-frame marker -> the transfer syntaxes it belongs to; the first one is used in place of a wrong one.
_SYNTAXES = {
    0xC0: (f"{_JPEG}50", f"{_JPEG}51"),
    0xC1: (f"{_JPEG}51", f"{_JPEG}50"),
    0xC3: (f"{_JPEG}57", f"{_JPEG}70"),
    0xF7: (f"{_JPEG}81", f"{_JPEG}80"),
}
_JPEG_2000 = tuple(f"{_JPEG}{number}" for number in (91, 90, 92, 93, 203, 201, 202))
_RLE = ("1.2.840.10008.1.2.5",)
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
HEAD = 1 << 16  # bytes that contain the header of a frame


@dataclass(frozen=True)
class Codestream:
    """syntaxes: UIDs that fit, the best one first. rows, columns, bits, samples: 0 if the format does not say."""

    syntaxes: tuple[str, ...]
    rows: int = 0
    columns: int = 0
    bits: int = 0
    samples: int = 0


def read_codestream(head: bytes) -> Codestream | None:
    """head: the first bytes of a compressed frame. None if it is the beginning of no format known here."""
    try:
        if head.startswith(b"\xff\xd8"):
            return _read_jpeg(head)
        if head.startswith(b"\xff\x4f\xff\x51"):
            return _read_jpeg_2000(head)
        if head.startswith(b"\0\0\0\x0cjP  "):  # in a file format, which the standard does not allow and some write
            return Codestream(_JPEG_2000)
        segments, first = struct.unpack_from("<LL", head)
        return Codestream(_RLE) if 1 <= segments <= 15 and first == 64 else None
    except struct.error:
        return None


def _read_jpeg(head: bytes) -> Codestream | None:
    position = 2
    while True:
        start, marker = struct.unpack_from(">BB", head, position)
        if start != 0xFF:
            return None
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        elif marker in _SYNTAXES:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", head, position + 4)
            return Codestream(_SYNTAXES[marker], rows, columns, bits, samples)
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xDA:
            return None  # another process, or a scan before its header
        else:
            (length,) = struct.unpack_from(">H", head, position + 2)
            position += 2 + length


def _read_jpeg_2000(head: bytes) -> Codestream:
    right, bottom, left, top = struct.unpack_from(">LLLL", head, 8)
    (samples,) = struct.unpack_from(">H", head, 40)
    return Codestream(_JPEG_2000, bottom - top, right - left, (head[42] & 0x7F) + 1, samples)
