"""Sizes and switches of the vessel head, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vesselseg.errors import UserError

NORMS = ("group", "instance")


@dataclass(frozen=True)
class VesselHeadOptions:
    """Sizes and switches of a `VesselHead`; `model.sa2va.sam2.vessel_head` takes these names.

    channels: of the pyramid at strides 1, 2, 4, ... of the head's side, one number per level.
    depth: blocks per level of the encoder, behind the convolution that enters it; decoder_depth: likewise of the
        decoder, which has one level less. A single number is the same for every level.
    object_channels: of the part that runs for every object, at the same strides; as many levels or fewer.
    residual: a block has two convolutions and adds its input to its output. Without, it is one convolution: depth 1
        and decoder_depth 2 are then the plain U-Net of nnU-Net. norm: `group` (8 channels a group) or `instance`.
    side: pixels of the head's own square, which its masks have too. It must be the view's, or half or a quarter of it:
        a view of 1024 pixels that only enlarges pictures of 512 holds no more than 512 can. None: the view's.
    at_once: images whose activations are computed again together in the backward pass; None: all activations are kept,
        as they are with partitioned weights (ZeRO-3).
    compile: whether a training on a GPU fuses the head's small kernels (`torch.compile`); the first steps take longer.
    modulated, skips, sam2: for ablations. Without `modulated` the token is not read. Without `skips` the pyramid does
        not see SAM2's features. Without `sam2` nothing of SAM2 is read: neither features nor logits, and what modulates
        is the prompt itself.
    """

    channels: Sequence[int] = (16, 32, 64, 128, 192, 256)
    depth: int | Sequence[int] = 1
    decoder_depth: int | Sequence[int] = 1
    object_channels: Sequence[int] = (8, 16, 24, 32, 48)
    residual: bool = True
    norm: str = "group"
    side: int | None = None
    at_once: int | None = 2
    compile: bool = False
    modulated: bool = True
    skips: bool = True
    sam2: bool = True

    def __post_init__(self) -> None:
        # JSON and config files hold lists; two heads are the same where their numbers are.
        levels = len(self.channels)
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "object_channels", tuple(self.object_channels))
        object.__setattr__(self, "depth", _per_level(self.depth, levels))
        object.__setattr__(self, "decoder_depth", _per_level(self.decoder_depth, levels - 1))

    @property
    def uses_features(self) -> bool:
        """Whether the pyramid sees SAM2's features."""
        return self.sam2 and self.skips

    def shape(self) -> dict[str, Any]:
        """What the weights depend on: all but `at_once` and `compile`."""
        names = (field.name for field in fields(self) if field.name not in ("at_once", "compile"))
        return {name: getattr(self, name) for name in names}

    def problems(self, image_size: int) -> list[str]:
        """What is wrong with them for a view of so many pixels, one sentence each."""
        levels, found = len(self.channels), []
        depths: tuple[tuple[str, Any, int], ...] = (
            ("depth", self.depth, levels),
            ("decoder_depth", self.decoder_depth, levels - 1),
        )
        for name, depth, expected in depths:
            if len(depth) != expected or min(depth, default=1) < 1:
                found.append(f"{name} is {list(depth)}; expected {expected} numbers of 1 or more, or a single one")
        if levels < 2 or min(self.channels) < 1:
            found.append(f"channels is {list(self.channels)}; expected two numbers above 0 or more")
        if not 1 <= len(self.object_channels) <= levels or min(self.object_channels) < 1:
            found.append(
                f"object_channels is {list(self.object_channels)}; expected one to {levels} numbers above 0, no more "
                "than channels has"
            )
        if self.norm not in NORMS:
            found.append(f"norm is {self.norm!r}; expected {' or '.join(map(repr, NORMS))}")
        if self.at_once is not None and self.at_once < 1:
            found.append(f"at_once is {self.at_once}; expected 1 or more images, or None")
        side = self.side or image_size
        if side not in (image_size, image_size // 2, image_size // 4):
            found.append(
                f"side is {side} for a view of {image_size} pixels; expected {image_size}, {image_size // 2} or "
                f"{image_size // 4}"
            )
        if side % 2 ** (levels - 1):
            found.append(
                f"channels has {levels} levels, for which the side must be a multiple of {2 ** (levels - 1)}; found "
                f"{side}"
            )
        return [f"sam2.vessel_head.{problem}" for problem in found]


def read_options(given: Mapping[str, Any]) -> VesselHeadOptions:
    """Options from a config's or a folder's dict. Raises UserError for a name that there is not."""
    known = {field.name for field in fields(VesselHeadOptions)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise UserError(f"sam2.vessel_head holds {', '.join(unknown)}; it takes {', '.join(sorted(known))}")
    return VesselHeadOptions(**given)


def _per_level(depth: int | Sequence[int], levels: int) -> tuple[int, ...]:
    return (depth,) * levels if isinstance(depth, int) else tuple(depth)
