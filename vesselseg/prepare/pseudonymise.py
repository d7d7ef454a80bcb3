"""Replace names of patients and files by salted hashes, reproducible with the salt and not invertible without it.

HMAC-SHA256 (RFC 2104) with a secret of 256 bits. Without a salt, the hash of a patient number could be inverted by
hashing all numbers, so the salt must not be distributed with the data.
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

_SHORTEST = 16  # minimum characters of a salt
_DIGITS = 16  # hex digits of a pseudonym, 64 bits


class Pseudonymiser:
    """Hashes names with one salt, and remembers their originals in memory for ``write_key``.

    salt_file: read if it exists; otherwise a random salt is generated, which ``save_salt`` writes there. Raises
    UserError if the salt is too short.
    """

    def __init__(self, salt_file: Path) -> None:
        self.salt_file = salt_file
        self._generated = not salt_file.exists()
        self._salt = secrets.token_hex(32).encode("ascii") if self._generated else salt_file.read_bytes().strip()
        self._known: dict[str, tuple[str, str]] = {}
        if len(self._salt) < _SHORTEST:
            raise UserError(
                f"--salt {salt_file}: {len(self._salt)} characters; a salt needs at least {_SHORTEST} random ones"
            )

    def save_salt(self) -> None:
        """Write a generated salt, readable by its owner only."""
        if self._generated:
            with _open_private(self.salt_file, os.O_EXCL) as opened:
                opened.write(self._salt.decode("ascii") + "\n")

    def file(self, name: str) -> str:
        """The pseudonym of a file or frame of the source."""
        return self._hash("file", name)

    def group(self, name: str) -> str:
        """The pseudonym of a patient or group; the same in every dataset prepared with this salt."""
        return self._hash("group", name)

    def pseudonymise(self, finding: Finding) -> Finding:
        """The finding with its file hashed, and its title in place of a reason that may contain a name."""
        file = finding.file if finding.file.startswith("(") else self.file(finding.file)
        reason = finding.reason if finding.is_anonymous else finding.title
        return replace(finding, file=file, reason=reason)

    def write_key(self, path: Path) -> None:
        """Write the table pseudonym, kind, name, which re-identifies patients; readable by its owner only."""
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
