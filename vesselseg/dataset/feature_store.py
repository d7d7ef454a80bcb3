"""Features of the frozen encoders on disk: one memory-mapped file per view of an image.

Stale features cannot be read. The folder is named after a digest of everything except the image that features depend
on (weights, sizes, augmentation, versions; listed in `store.json`), and a file after a digest of the image's bytes and
regions. A file gets its final name only when it is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vesselseg.dataset.batch import EncodedViews
from vesselseg.errors import UserError
from vesselseg.output_folder import UNFINISHED, whole_file

# Increment it with every change of the stored content: image to view, view to features, or file layout.
FEATURES_VERSION = 2
SOFT = "levels"  # of masks that hold parts of pixels: 0 to 255
PLAIN = "plain"  # of masks with pixels that have no label
STORE_FILE = "store.json"
REMOVED = ".removed"
ABANDONED_S = 3600  # writing a file takes seconds; an unfinished one this old was left by a killed process
VIEW = "view"  # field of EncodedViews, and of a key: whether the pixels of the square view are stored too


class FeatureStore:
    """The features of one key. root: folder of all stores. key: JSON-serialisable values.

    A key with a true `view` also stores the pixels of the square view.
    """

    def __init__(self, root: str | Path, key: Mapping[str, Any]) -> None:
        self.key = dict(key)
        self.folder = Path(root) / digest(self.key)
        fields_kept = (field.name for field in fields(EncodedViews))
        self.names = tuple(name for name in fields_kept if name != VIEW or self.key.get(VIEW))

    def create(self) -> None:
        """Create the folder and write its key; raises UserError if that fails or the folder holds another key."""
        text = json.dumps(self.key, indent=1, sort_keys=True)
        path = self.folder / STORE_FILE
        found = None
        while found is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # another process has just removed the folder
                    if not path.exists():
                        with whole_file(path, self._temporary(STORE_FILE)) as temporary:
                            temporary.write_text(text, encoding="utf-8")
                    found = path.read_text(encoding="utf-8")
            except OSError as error:
                raise UserError(
                    f"{self.folder}: features cannot be stored there ({error}); set features.folder"
                ) from None
        if found != text:
            raise UserError(f"{path} was edited, so the origin of the features is unknown; remove {self.folder}")

    def remove_abandoned(self) -> None:
        """Delete unfinished files that killed processes left."""
        for path in self.folder.glob(f"*{UNFINISHED}"):
            try:
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()
            except FileNotFoundError:  # another process deleted it first
                continue

    def path(self, name: str) -> Path:
        """The file of one view."""
        return self.folder / f"{name}.safetensors"

    def holds(self, name: str) -> bool:
        """Whether the view's file exists with all tensors and the length that its header states."""
        try:
            with safe_open(self.path(name), "pt") as file:
                return set(file.keys()) == {*self.names, "masks"}
        except (OSError, SafetensorError):
            return False

    def write(self, name: str, encoded: EncodedViews, masks: Tensor, image: str) -> int:
        """Store one view; returns the file's size in bytes.

        encoded: of one image, on the CPU. masks: as in Example; those of 0 and 1 are stored as bits. image: its
        name, for the file's metadata. Raises UserError if it cannot be written, and leaves no partial file.
        """
        tensors = {name: tensor.contiguous() for name, tensor in encoded.tensors().items()}
        form, packed = _packed(masks)
        tensors["masks"] = packed
        described = {"image": image, "width": str(masks.shape[-1]), "masks": form}
        try:
            with whole_file(self.path(name), self._temporary(name), durable=True) as temporary:
                save_file(tensors, temporary, metadata=described)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.folder}: the features of {image} cannot be written ({error}); free some space or set "
                "features.folder to another disk. Features written so far are kept"
            ) from None
        return self.path(name).stat().st_size

    def read(self, name: str) -> tuple[EncodedViews, Tensor]:
        """One view and its masks, as in Example; features are memory-mapped, read on use.

        Raises UserError if the file is damaged or missing.
        """
        try:
            with safe_open(self.path(name), "pt") as file:
                encoded = EncodedViews(**{field: file.get_tensor(field) for field in self.names})
                packed, described = file.get_tensor("masks"), file.metadata()
                width = int(described["width"])
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(
                f"{self.path(name)}: stored features are damaged or missing ({error}); continue with --resume auto, "
                "which computes them again"
            ) from None
        if described.get("masks") == SOFT:
            return encoded, packed.half() / 255
        if described.get("masks") == PLAIN:
            return encoded, packed
        return encoded, torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=width))

    def use(self) -> BinaryIO:
        """Create the folder and lock it against `remove_unless_used`; returns the lock, to be passed to `leave`.

        If another process removes the folder before the lock is held, it is created again.
        """
        while True:
            self.create()
            try:
                file = (self.folder / STORE_FILE).open("rb")
            except FileNotFoundError:
                continue
            fcntl.flock(file, fcntl.LOCK_SH)
            if self._is_current(file):
                return file
            file.close()

    def leave(self, sign: BinaryIO) -> None:
        """Release the lock, including the copies that data loading processes inherited."""
        fcntl.flock(sign, fcntl.LOCK_UN)
        sign.close()

    def remove_unless_used(self) -> bool:
        """Delete the folder unless a process uses it; returns whether it is deleted.

        It is renamed first, so that a process which creates the folder again meanwhile gets a new one.
        """
        removed = self.folder.with_name(_own_name(self.folder.name, REMOVED))
        try:
            with (self.folder / STORE_FILE).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(file):
                    self.folder.rename(removed)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            pass
        for left in self.folder.parent.glob(
            f"{self.folder.name}.*{REMOVED}"
        ):  # also left by a process killed while deleting
            shutil.rmtree(left, ignore_errors=True)
        return True

    def bytes(self) -> int:
        """Total size of all feature files."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def _is_current(self, file: BinaryIO) -> bool:
        """Whether an open store.json is still the one on disk."""
        try:
            return os.fstat(file.fileno()).st_ino == (self.folder / STORE_FILE).stat().st_ino
        except FileNotFoundError:
            return False

    def _temporary(self, name: str) -> Path:
        return self.folder / _own_name(name, UNFINISHED)


def digest(values: Any) -> str:
    """JSON-serialisable values -> the first 24 hex digits of their SHA-256."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def _own_name(name: str, ending: str) -> str:
    """A name unique to this process among all machines that share the folder."""
    return f"{name}.{socket.gethostname()}.{os.getpid()}{ending}"


def weights_fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A digest of named tensors that does not depend on the device.

    The bits are summed as integers: plain, weighted by position, and squared. Integer sums wrap around identically on
    every device, and only the sums are copied to the CPU.
    """
    described, sums = [], []
    for name, tensor in tensors:
        described.append([name, list(tensor.shape), str(tensor.dtype)])
        sums.append(_sums(tensor.detach()))
    placed = [part.to(sums[0].device) for part in sums]  # a model may span several GPUs
    return digest([described, torch.stack(placed).tolist() if placed else []])


def _sums(tensor: Tensor) -> Tensor:
    """Sum, position-weighted sum and sum of squares of the bits: (3,) int64 on the tensor's device."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    total = torch.zeros(3, dtype=torch.int64, device=tensor.device)
    for number, piece in enumerate(tensor.contiguous().view(-1).view(kind).split(1 << 22)):
        bits = piece.long()  # (at most 2^22,)
        place = torch.arange(1, len(bits) + 1, device=bits.device) + (number << 22)
        total += torch.stack([bits.sum(), (bits * place).sum(), (bits * bits).sum()])
    return total


def _packed(masks: Tensor) -> tuple[str, Tensor]:
    """How masks are stored, and what is stored."""
    if masks.dtype in (torch.int8, torch.float32):
        return PLAIN, masks.contiguous()
    if masks.is_floating_point():
        return SOFT, (255 * masks.float()).round().byte()
    return "bits", torch.as_tensor(np.packbits(masks.numpy(), axis=-1))
