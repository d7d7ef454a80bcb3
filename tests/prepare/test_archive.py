"""Archives are extracted completely or rejected before anything is written."""

from __future__ import annotations

import gzip
import io
import lzma
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vesselseg.prepare.archive import ArchiveError, unpack

CONTENT = {"top/a.json": b"{}", "top/deep/b.png": b"picture", "血管/c.json": b"[]"}
JUNK = {"__MACOSX/top/._a.json": b"x", "top/._b.png": b"x", "top/.DS_Store": b"x"}


def make_tar(
    path: Path, files: dict[str, bytes], mode: str = "w:gz", extra: list[tarfile.TarInfo] | None = None
) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra or []:
            archive.addfile(info)
    return path


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def unpacked(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.tar.gz", lambda path, files: make_tar(path, files)),
        ("a.tgz", lambda path, files: make_tar(path, files)),
        ("a.tar", lambda path, files: make_tar(path, files, "w")),
        ("a.tar.xz", lambda path, files: make_tar(path, files, "w:xz")),
        ("a.zip", make_zip),
        ("named_wrongly.tar.gz", make_zip),
        ("named_wrongly.zip", lambda path, files: make_tar(path, files)),
    ],
)
def test_extracts_all_but_system_files(tmp_path: Path, folder: Path, name: str, make: Callable[..., Path]) -> None:
    unpack(make(tmp_path / name, CONTENT | JUNK), folder)
    assert unpacked(folder) == CONTENT


@pytest.mark.parametrize("make", [make_tar, make_zip])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/x.json", "absolute"),
        ("../x.json", "leaves the folder"),
        ("a/../../x.json", "leaves the folder"),
        ("..\\x.json", "leaves the folder"),
        ("C:\\x.json", "absolute"),
        ("C:x.json", "absolute"),
    ],
)
def test_unsafe_names_are_rejected(
    tmp_path: Path, folder: Path, make: Callable[..., Path], name: str, reason: str
) -> None:
    archive = make(tmp_path / "a", {"good.json": b"{}", name: b"x"})
    with pytest.raises(ArchiveError, match=reason):
        unpack(archive, folder)
    assert unpacked(folder) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "a link to"),
        (tarfile.LNKTYPE, "a link to"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.FIFOTYPE, "device"),
    ],
)
def test_links_and_devices_in_tar(tmp_path: Path, folder: Path, kind: bytes, reason: str) -> None:
    info = tarfile.TarInfo("odd")
    info.type = kind
    info.linkname = "/etc/passwd"
    with pytest.raises(ArchiveError, match=reason):
        unpack(make_tar(tmp_path / "a.tar.gz", {"good.json": b"{}"}, extra=[info]), folder)
    assert unpacked(folder) == {}


@pytest.mark.parametrize(("mode", "reason"), [(stat.S_IFLNK, "a link"), (stat.S_IFCHR, "device")])
def test_links_and_devices_in_zip(tmp_path: Path, folder: Path, mode: int, reason: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.json", "{}")
        info = zipfile.ZipInfo("odd")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match=reason):
        unpack(tmp_path / "a.zip", folder)
    assert unpacked(folder) == {}


def test_all_bad_members_are_listed_at_once(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ArchiveError) as caught:
        unpack(make_tar(tmp_path / "a.tgz", {"../x": b"", "/y": b"", "z": b""}), folder)
    assert "'../x'" in str(caught.value)
    assert "'/y'" in str(caught.value)


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_bombs_are_rejected_before_writing(tmp_path: Path, folder: Path, make: Callable[..., Path]) -> None:
    archive = make(tmp_path / "a", {"small.json": b"{}", "big.bin": bytes(3_000_000)})
    with pytest.raises(ArchiveError, match="--max-gib"):
        unpack(archive, folder, max_gib=0.002)
    with pytest.raises(ArchiveError, match="--max-files"):
        unpack(archive, folder, max_files=1)
    assert unpacked(folder) == {}
    unpack(archive, folder, max_gib=0.003, max_files=2)
    assert set(unpacked(folder)) == {"small.json", "big.bin"}


def test_zip_with_false_sizes_is_rejected(tmp_path: Path, folder: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"big.bin": bytes(2_000_000)})
    content = path.read_bytes().replace((2_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(ArchiveError):
        unpack(path, folder)
    assert all(len(data) <= 10 for data in unpacked(folder).values())


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_truncated_archive_is_an_error(tmp_path: Path, folder: Path, make: Callable[..., Path], part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 5000), dtype=np.uint8)
    path = make(tmp_path / "a", {f"{number}.bin": row.tobytes() for number, row in enumerate(noise)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ArchiveError, match=r"damaged or truncated|neither"):
        unpack(path, folder)


@pytest.mark.parametrize("length", [512 + 1000, 5632 + 200, 5632 + 512, 5632 + 512 + 1])
def test_truncated_plain_tar_is_an_error(tmp_path: Path, folder: Path, length: int) -> None:
    """Two members of 512 bytes of header and 5120 of content, cut inside a content, a header, and between."""
    path = make_tar(tmp_path / "a.tar", {"a.bin": b"a" * 5000, "b.bin": b"b" * 5000}, "w")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArchiveError, match="damaged or truncated"):
        unpack(path, folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"hello world", "neither"), (b"Rar!\x1a\x07\x00", "RAR"), (b"\x1f\x8b\x08broken", "damaged")],
)
def test_files_other_than_archives(tmp_path: Path, folder: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=words):
        unpack(path, folder)


def test_encrypted_zip_is_rejected(tmp_path: Path, folder: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"x.json": b"{}"})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArchiveError, match="encrypted"):
        unpack(path, folder)


def test_chinese_names_of_windows_zip_files(tmp_path: Path, folder: Path) -> None:
    raw = "病人".encode("gbk")
    path = make_zip(tmp_path / "a.zip", {"XXXX/a.json": b"{}"})
    path.write_bytes(path.read_bytes().replace(b"XXXX", raw))
    unpack(path, folder)
    assert set(unpacked(folder)) == {"病人/a.json"}


def test_name_of_both_a_file_and_a_folder(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ArchiveError, match="both a file and a folder"):
        unpack(make_tar(tmp_path / "a.tgz", {"x": b"1", "x/y.json": b"2"}), folder)


def raw_header(name: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


NAMED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)


@pytest.mark.parametrize("kind", NAMED)
def test_long_names_and_records_take_no_memory(tmp_path: Path, folder: Path, kind: bytes) -> None:
    """64 MB of one letter are 60 kB in the archive."""
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(raw_header("long", kind, 64_000_000))
        for _ in range(64):
            file.write(b"a" * 1_000_000)
        file.write(raw_header("a.json", tarfile.REGTYPE, 0) + bytes(1024))
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="a name or record of 64000000 bytes"):
            unpack(tmp_path / "a.tar.gz", folder)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_names_of_usual_length_are_kept(tmp_path: Path, folder: Path) -> None:
    files = {f"{'d' * 60}/{'e' * 60}/{'f' * 60}.json": b"{}"}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        unpack(tmp_path / "a.tar", folder)
        assert unpacked(folder) == files


@pytest.mark.parametrize("size", [-512, -1, -(2**40)])
def test_a_negative_size_is_no_way_back(tmp_path: Path, folder: Path, size: int) -> None:
    block = bytearray(raw_header("a.json", tarfile.REGTYPE, 0))
    block[124:136] = b"\xff" + size.to_bytes(11, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(raw_header("first.json", tarfile.REGTYPE, 0) + bytes(block) + bytes(1024))
    with pytest.raises(ArchiveError, match=f"a header with the size {size}"):
        unpack(tmp_path / "a.tar", folder)


def test_a_sparse_map_takes_no_memory(tmp_path: Path, folder: Path) -> None:
    block = bytearray(raw_header("a.json", tarfile.GNUTYPE_SPARSE, 0))
    block[482] = 1  # the map goes on
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    more = b"00000000001\0" * 42 + b"\1" + bytes(7)
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(bytes(block) + more * 20_000 + bytes(512) + bytes(1024))
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="a sparse file"):
            unpack(tmp_path / "a.tar.gz", folder)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_an_xz_file_may_not_take_a_large_window(tmp_path: Path, folder: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(bytes(1024), filters=filters))
    with pytest.raises(ArchiveError, match="Memory usage limit"):
        unpack(tmp_path / "a.tar.xz", folder)


def test_a_damaged_bzip2_member_is_a_message(tmp_path: Path, folder: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.json", b"abc" * 1000)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    start = content.index(b"BZh")
    content[start + 4 : start + 20] = b"\xff" * 16
    (tmp_path / "a.zip").write_bytes(bytes(content))
    with pytest.raises(ArchiveError, match="damaged or truncated"):
        unpack(tmp_path / "a.zip", folder)
