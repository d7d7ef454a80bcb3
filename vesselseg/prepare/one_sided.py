"""Find a source in which nothing, or everything, is vessel: most likely its masks are read wrongly."""

from __future__ import annotations

from collections.abc import Sequence

from vesselseg.prepare.findings import Finding
from vesselseg.prepare.prepare_image import ImageResult

_NEARLY_ALL = 0.9  # of the pixels of an image


def find_one_sided(results: Sequence[ImageResult]) -> list[Finding]:
    """One finding if no image has a vessel pixel, or if nearly every pixel of every image is one."""
    fractions = [result.fraction for result in results]
    if fractions and max(fractions) == 0:
        reason = f"none of {len(fractions)} images has a vessel pixel; are the labels read as they are meant?"
        return [Finding("(all files)", None, "no_vessel", reason)]
    if fractions and min(fractions) > _NEARLY_ALL:
        reason = f"{min(fractions):.0%} or more of each of {len(fractions)} images is vessel; are the masks inverted?"
        return [Finding("(all files)", None, "all_vessel", reason)]
    return []
