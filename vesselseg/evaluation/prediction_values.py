"""How integer pictures of a folder of predictions are read: as masks, as scaled probabilities, or not at all."""

from __future__ import annotations

from dataclasses import replace

from vesselseg.imaging.mask_evidence import FIRST_LARGE, Evidence, class_numbers
from vesselseg.imaging.mask_option import MaskValues
from vesselseg.imaging.mask_values import Meaning, decide

_NUMBERS = ("mask_ignore", "mask_objects", "mask_classes")  # decisions of `decide` that say: no probabilities
_ADVICE = (
    "--mask-values classes: everything but 0 is vessel; ignore=255: 255 is not; binary: above half the largest value; "
    "probability: values divided by the largest possible one"
)


def picture_meaning(evidence: Evidence, asked: MaskValues) -> Meaning | None:
    """The meaning of all pictures of one kind, from their evidence; None: values are scaled probabilities.

    Raises ValueError where numbers of classes or objects would be scored as very dark probabilities.
    """
    if asked.meaning == "probability":
        return None
    if asked:
        return decide(evidence, asked)
    values = [value for value in evidence.values if value]
    nonzero_is_vessel = Meaning("classes")
    if evidence.kind in ("bits", "index"):
        found = decide(evidence)
        if found.ignore:
            raise ValueError(f"{found.reason}, but a prediction has none. {_ADVICE}")
        return replace(nonzero_is_vessel, background=found.background)
    if all(value in (1, 255, 65535) for value in values) and not evidence.joint["files"]:
        return nonzero_is_vessel
    if max(values) < FIRST_LARGE:
        raise ValueError(
            f"the values are {_listed(evidence.values)}: class numbers or very dark probabilities. {_ADVICE}"
        )
    if len(values) == 1 and len(evidence.values) == 2:
        return nonzero_is_vessel
    found = decide(evidence)
    if found.code == "mask_mixed" and class_numbers(values) == [1]:
        return nonzero_is_vessel
    if found.code in _NUMBERS or found.code == "mask_mixed":
        raise ValueError(f"the values are {_listed(evidence.values)}: numbers of classes or objects. {_ADVICE}")
    return None


def _listed(values: list[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:6])
    return shown + (f" and {len(values) - 6} more" if len(values) > 6 else "")
