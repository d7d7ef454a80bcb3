"""What frozen encoders make of images, kept in files: one per view of an image, readable without a copy.

Nothing in a store can belong to something else. The folder is named by a digest of all that features depend on beside
the image (weights, sizes, augmentation, versions; `store.json` spells it out), and a file by a digest of the image's
own bytes and regions. Files appear under their names when they are complete.
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

# Raise it with every change of what is stored: how images become views, what is computed from them, how it is written.
FEATURES_VERSION = 1
STORE_FILE = "store.json"
REMOVED = ".removed"
ABANDONED_S = 3600  # an unfinished file is written in seconds; one this old belongs to a process that was killed
NAMES = tuple(field.name for field in fields(EncodedViews))


class FeatureStore:
    """The folder of one key. root: folder of all stores. key: plain values that JSON keeps."""

    def __init__(self, root: str | Path, key: Mapping[str, Any]) -> None:
        self.key = dict(key)
        self.folder = Path(root) / digest(self.key)

    def create(self) -> None:
        """Make the folder and write down its key; raises UserError where it cannot be, or holds another key."""
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
                    f"{self.folder}: features cannot be kept there ({error}); set features.folder"
                ) from None
        if found != text:
            raise UserError(f"{path} was changed by hand, nothing tells what the features are; remove {self.folder}")

    def remove_abandoned(self) -> None:
        """Delete what killed processes have left unfinished."""
        for path in self.folder.glob(f"*{UNFINISHED}"):
            try:
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()
            except FileNotFoundError:  # another process was quicker
                continue

    def path(self, name: str) -> Path:
        """The file of one view."""
        return self.folder / f"{name}.safetensors"

    def holds(self, name: str) -> bool:
        """Whether the view's file is there and as long as its own header says."""
        try:
            with safe_open(self.path(name), "pt") as file:
                return set(file.keys()) == {*NAMES, "masks"}
        except (OSError, SafetensorError):
            return False

    def write(self, name: str, encoded: EncodedViews, masks: Tensor, image: str) -> int:
        """Keep one view; returns its bytes. encoded: of one image, on the CPU. masks: (objects, height, width) uint8.

        Raises UserError where it cannot be written, and leaves nothing behind.
        """
        tensors = {field: getattr(encoded, field).contiguous() for field in NAMES}
        tensors["masks"] = torch.from_numpy(np.packbits(masks.numpy(), axis=-1))
        try:
            with whole_file(self.path(name), self._temporary(name), durable=True) as temporary:
                save_file(tensors, temporary, metadata={"image": image, "width": str(masks.shape[-1])})
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.folder}: the features of {image} cannot be written ({error}); make room there or set "
                "features.folder to another disk. What is written is kept"
            ) from None
        return self.path(name).stat().st_size

    def read(self, name: str) -> tuple[EncodedViews, Tensor]:
        """One view and its masks (objects, height, width) uint8; the features are pages of the file, read when used.

        Raises UserError where the file is damaged or gone.
        """
        try:
            with safe_open(self.path(name), "pt") as file:
                encoded = EncodedViews(**{field: file.get_tensor(field) for field in NAMES})
                packed, width = file.get_tensor("masks").numpy(), int(file.metadata()["width"])
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(
                f"{self.path(name)}: stored features are damaged or gone ({error}); go on with --resume auto, which "
                "computes them again"
            ) from None
        return encoded, torch.from_numpy(np.unpackbits(packed, axis=-1, count=width))

    def use(self) -> BinaryIO:
        """Make the folder; the sign that this process uses it, which `remove_unless_used` minds, until `leave`.

        Another process may remove the folder at any moment before: it is made anew then.
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
        """Take the sign back, also from loading processes, which inherited it."""
        fcntl.flock(sign, fcntl.LOCK_UN)
        sign.close()

    def remove_unless_used(self) -> bool:
        """Delete the folder, unless a process uses it; returns whether it is gone.

        It loses its name at once, so that whoever makes it anew meanwhile does not share it with what is being deleted.
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
        for left in self.folder.parent.glob(f"{self.folder.name}.*{REMOVED}"):  # also of who was killed while deleting
            shutil.rmtree(left, ignore_errors=True)
        return True

    def bytes(self) -> int:
        """What all files of the folder weigh."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def _is_current(self, file: BinaryIO) -> bool:
        """Whether an open store.json is the one that is there now."""
        try:
            return os.fstat(file.fileno()).st_ino == (self.folder / STORE_FILE).stat().st_ino
        except FileNotFoundError:
            return False

    def _temporary(self, name: str) -> Path:
        return self.folder / _own_name(name, UNFINISHED)


def digest(values: Any) -> str:
    """Plain values -> 24 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def _own_name(name: str, ending: str) -> str:
    """A name that no other process takes, on any machine that shares the folder."""
    return f"{name}.{socket.gethostname()}.{os.getpid()}{ending}"


def weights_fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A digest of named tensors, the same on every device.

    Their bits are read as integers and summed, plain, by position and squared, which wraps around exactly everywhere;
    nothing but the sums leaves the device.
    """
    described, sums = [], []
    for name, tensor in tensors:
        described.append([name, list(tensor.shape), str(tensor.dtype)])
        sums.append(_sums(tensor.detach()))
    placed = [part.to(sums[0].device) for part in sums]  # a model may be spread over several GPUs
    return digest([described, torch.stack(placed).tolist() if placed else []])


def _sums(tensor: Tensor) -> Tensor:
    """(3,) int64 on the tensor's device."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    total = torch.zeros(3, dtype=torch.int64, device=tensor.device)
    for number, piece in enumerate(tensor.contiguous().view(-1).view(kind).split(1 << 22)):
        bits = piece.long()
        place = torch.arange(1, len(bits) + 1, device=bits.device) + (number << 22)
        total += torch.stack([bits.sum(), (bits * place).sum(), (bits * bits).sum()])
    return total
