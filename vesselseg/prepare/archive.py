"""Extract archives safely: every member is checked before the first byte is written.

Rejected are absolute names, names with "..", links, devices, sparse and encrypted members, and archives that expand
beyond a limit of bytes or files.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from vesselseg.errors import UserError
from vesselseg.imaging.source_files import is_system_file
from vesselseg.machine import GIB

_CHUNK = 1024 * 1024
# what readers raise on damaged archives; bz2 and gzip raise OSError without a number
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
)
LONGEST_HEADER = 1 << 16  # bytes of a name, a link's target or pax records
LZMA_MEMORY = 1 << 28  # bytes; xz -9 takes 65 MiB to unpack
_HEADER_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_ENCRYPTED = 0x1  # zip's general purpose flag
_UTF8_NAME = 0x800


class ArchiveError(UserError):
    """The archive is damaged, unsupported or rejected; the message lists the bad members."""


@dataclass(frozen=True)
class _Member:
    """name: cleaned path. size: declared bytes. open: opens its content. problem: why it is rejected, or ""."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    problem: str = ""


def unpack(archive: Path, folder: Path, max_gib: float = 50.0, max_files: int = 500_000) -> None:
    """Extract a .zip or .tar (plain, gz, bz2, xz; detected by content) into an existing folder.

    Raises ArchiveError before anything is written if a member is unsafe or a limit would be exceeded.
    """
    try:
        with _members(Path(archive)) as members:
            _check(archive, members(), max_gib, max_files)
            for member in members():
                if not is_system_file(PurePosixPath(member.name)):
                    _write(archive, member, folder)
    except ArchiveError:
        raise
    except (*_DAMAGED, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the file system's, not that of a format
            raise
        raise ArchiveError(
            f"{archive}: the archive is damaged or truncated ({str(error) or type(error).__name__}); copy it again"
        ) from None


def _check(archive: Path, members: Iterator[_Member], max_gib: float, max_files: int) -> None:
    """Check every header; stop at the first exceeded limit, so that a decompression bomb is not read completely."""
    total, count = 0, 0
    problems: list[str] = []
    for member in members:
        total, count = total + member.size, count + 1
        if total > max_gib * GIB:
            raise ArchiveError(
                f"{archive}: expands to more than {max_gib:g} GiB; if this is intended, raise the limit with --max-gib"
            )
        if count > max_files:
            raise ArchiveError(
                f"{archive}: has more than {max_files:,} files; if this is intended, raise the limit with --max-files"
            )
        if member.problem and len(problems) <= 20:
            problems.append(f"{member.name[:200]!r}: {member.problem}")
    if problems:
        shown = "\n  ".join(problems[:20]) + ("\n  and more" if len(problems) > 20 else "")
        raise ArchiveError(f"{archive}: rejected, nothing was extracted:\n  {shown}")


def _write(archive: Path, member: _Member, folder: Path) -> None:
    target = folder / member.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, target.open("wb") as sink:
            # Both readers stop at the declared size, so a false size in a header cannot exceed the limit.
            shutil.copyfileobj(source, sink, _CHUNK)
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise ArchiveError(f"{archive}: {member.name} is both a file and a folder in the archive") from None


@contextmanager
def _members(archive: Path) -> Iterator[Callable[[], Iterator[_Member]]]:
    """A function that iterates over the archive's files from the beginning."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield lambda: _zip_members(opened)
    elif _is_tar(archive):
        yield lambda: _tar_members(archive)
    else:
        raise ArchiveError(
            f"{archive}: neither a .zip nor a .tar archive ({_first_bytes(archive)}); "
            "give a folder, .tar.gz, .tgz, .tar or .zip"
        )


def _is_tar(archive: Path) -> bool:
    """Whether it is a tar archive or a compressed file; reading the latter shows whether it is one."""
    with archive.open("rb") as opened:
        start = opened.read(6)
    return start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or tarfile.is_tarfile(archive)


def _tar_members(archive: Path) -> Iterator[_Member]:
    _check_xz(archive)
    with tarfile.open(archive, "r:*", tarinfo=_BoundedInfo) as opened:
        for info in opened:
            opened.members = []  # type: ignore[attr-defined] # else all headers of the archive stay in memory
            name, problem = _clean_name(info.name)
            if info.isdir() and not problem:
                continue
            yield _Member(name, info.size, _tar_opener(opened, info), problem or _tar_problem(info))
        _check_tar_end(opened)


class _BoundedInfo(tarfile.TarInfo):
    """A header that is checked before memory is taken for what it announces.

    Long names and pax records are read into memory whole, and compress a thousandfold; a negative size turns the reader
    back to headers that it has read.
    """

    def _proc_member(self, opened: tarfile.TarFile) -> Any:
        if self.size < 0:
            raise tarfile.ReadError(f"a header with the size {self.size}")
        if self.type in _HEADER_TYPES and self.size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a name or record of {self.size} bytes; expected at most {LONGEST_HEADER}")
        return super()._proc_member(opened)  # type: ignore[misc]

    def _proc_sparse(self, opened: tarfile.TarFile) -> Any:
        """Passes over the map, which may go on for the whole archive; sparse files are rejected anyway."""
        _, more, _ = self._sparse_structs  # type: ignore[attr-defined]
        assert opened.fileobj is not None
        while more:
            block = opened.fileobj.read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of data")
            more = bool(block[504])
        self.sparse = []  # type: ignore[assignment]
        self.offset_data = opened.fileobj.tell()
        opened.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        return self

    def _proc_gnusparse_10(self, following: Any, *_: Any) -> None:
        following.sparse = []


def _check_xz(archive: Path) -> None:
    """Raise for an xz file whose window takes more memory than a reader should give it."""
    with archive.open("rb") as opened:
        start = opened.read(1 << 16)
    if start.startswith(b"\xfd7zXZ"):
        lzma.LZMADecompressor(memlimit=LZMA_MEMORY).decompress(start, max_length=1)


def _check_tar_end(opened: tarfile.TarFile) -> None:
    """Raise for a truncated header at the end, which tarfile takes for the end of the archive."""
    assert opened.fileobj is not None
    opened.fileobj.seek(opened.offset)
    if 0 < len(opened.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")


def _tar_opener(opened: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def open_member() -> IO[bytes]:
        content = opened.extractfile(info)
        if content is None:
            raise tarfile.ReadError(f"{info.name} has no content")
        return content

    return open_member


def _tar_problem(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {info.linkname!r}; pack the file itself"
    if info.issparse():
        return "a sparse file"
    return "" if info.isfile() else "a device or another special file"


def _zip_members(opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        name, problem = _clean_name(_zip_name(info))
        if info.is_dir() and not problem:
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            problem = problem or "a link; pack the file itself"
        elif kind not in (0, stat.S_IFREG):
            problem = problem or "a device or another special file"
        if info.flag_bits & _ENCRYPTED:
            problem = problem or "encrypted; pack it without a password"
        yield _Member(name, info.file_size, lambda info=info: opened.open(info), problem)  # type: ignore[misc]


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Decode names in GBK: zip files from Chinese Windows do not flag them, and Python reads them as cp437."""
    if info.flag_bits & _UTF8_NAME or info.orig_filename.isascii():
        return info.orig_filename
    try:
        raw = info.orig_filename.encode("cp437")
    except UnicodeEncodeError:
        return info.orig_filename
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return info.orig_filename


def _clean_name(name: str) -> tuple[str, str]:
    """A member's name with forward slashes, and why it is rejected, or ""."""
    path = PurePosixPath(name.replace("\\", "/"))
    if "\0" in name:
        return name, "a NUL character in the name"
    if path.is_absolute() or PureWindowsPath(name).drive:
        return name, "an absolute path"
    if ".." in path.parts:
        return name, 'leaves the folder with ".."'
    return str(path), ""


def _first_bytes(archive: Path) -> str:
    with archive.open("rb") as opened:
        start = opened.read(8)
    if not start:
        return "the file is empty"
    known = {b"Rar!": "it is a RAR archive", b"7z\xbc\xaf": "it is a 7-Zip archive", b"\x89PNG": "it is an image"}
    return known.get(start[:4], f"it begins with {start!r}")
