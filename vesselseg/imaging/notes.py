"""Notes: what reading a file changed or had to guess."""

from __future__ import annotations

from typing import NamedTuple


class Note(NamedTuple):
    """A remark about one file, not an error.

    code: a key of ``prepare.findings.FINDING_KINDS``. message: for the user, without the file's name.
    """

    code: str
    message: str
