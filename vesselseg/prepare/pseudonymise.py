"""Names of patients and files become salted hashes: the same name the same hash, and no way back without the salt.

HMAC-SHA256 (RFC 2104) with a secret of 256 bits. Without a salt, a hash of a patient's number could be found by hashing
all numbers; so the salt must not travel with the data.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from vesselseg.errors import UserError
from vesselseg.prepare.findings import Finding

_SHORTEST = 16  # characters of a salt
_DIGITS = 16  # of a pseudonym, 64 bits


class Pseudonymiser:
    """Hashes with one salt, and what each stands for (in memory only, unless ``write_key`` is called).

    salt_file: read if it is there; else a salt is drawn, which ``keep`` writes there. Raises UserError for one that is
    too short to be secret.
    """

    def __init__(self, salt_file: Path) -> None:
        self.salt_file = salt_file
        self._drawn = not salt_file.exists()
        self._salt = secrets.token_hex(32).encode("ascii") if self._drawn else salt_file.read_bytes().strip()
        self._known: dict[str, tuple[str, str]] = {}
        if len(self._salt) < _SHORTEST:
            raise UserError(
                f"--salt {salt_file}: {len(self._salt)} characters; a salt needs at least {_SHORTEST}, drawn at random"
            )

    def keep(self) -> None:
        """Write a salt that was drawn, readable by its owner only."""
        if self._drawn:
            with _open_private(self.salt_file, os.O_EXCL) as opened:
                opened.write(self._salt.decode("ascii") + "\n")

    def file(self, name: str) -> str:
        """The pseudonym of a file or frame of the source."""
        return self._hash("file", name)

    def group(self, name: str) -> str:
        """The pseudonym of a patient or group; the same in every dataset that is made with this salt."""
        return self._hash("group", name)

    def hide(self, finding: Finding) -> Finding:
        """The finding with its file hashed, and with its reason only where that cannot hold a name."""
        file = finding.file if finding.file.startswith("(") else self.file(finding.file)
        reason = finding.reason if finding.is_nameless else finding.title
        return replace(finding, file=file, reason=reason)

    def write_key(self, path: Path) -> None:
        """The table pseudonym, kind, name: whoever has it knows who is who. Readable by its owner only."""
        with _open_private(path, os.O_TRUNC) as opened:
            writer = csv.writer(opened)
            writer.writerow(["pseudonym", "kind", "name"])
            writer.writerows((hashed, kind, " ".join(name.split("\n"))) for hashed, (kind, name) in self._known.items())

    def _hash(self, kind: str, name: str) -> str:
        content = f"{kind}\n{name}".encode("utf-8", "surrogateescape")
        digest = hmac.new(self._salt, content, hashlib.sha256).hexdigest()[:_DIGITS]
        self._known[digest] = kind, name
        return digest


def _open_private(path: Path, flag: int) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600), "w", encoding="utf-8", newline="")
