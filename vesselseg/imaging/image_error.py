"""ImageError: no usable image for some labels, with the kind of finding that it is."""

from __future__ import annotations


class ImageError(ValueError):
    """No usable image for some labels. code: a key of ``prepare.findings.FINDING_KINDS``, for counting."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
