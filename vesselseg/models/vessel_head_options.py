"""Options of the vessel head, and their validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vesselseg.errors import UserError

NORMS = ("group", "instance")


@dataclass(frozen=True)
class VesselHeadOptions:
    """Options of a `VesselHead`; `model.sa2va.sam2.vessel_head` takes these names.

    The last three are for ablations.
    """

    channels: Sequence[int] = (16, 32, 64, 128, 192, 256)
    """channels of the pyramid at strides 1, 2, 4, ... of the head's side, one number per level"""
    depth: int | Sequence[int] = 1
    """blocks per level of the encoder, after the convolution that enters the level; one number for all, or one each"""
    decoder_depth: int | Sequence[int] = 1
    """the same for the decoder, which has one level less"""
    object_channels: Sequence[int] = (8, 16, 24, 32, 48)
    """channels of the decoder that runs for every object, at the same strides; as many levels or fewer"""
    residual: bool = True
    """blocks of two convolutions with a residual connection; False: one convolution each (with depth 1 and
    decoder_depth 2 the plain U-Net of nnU-Net)"""
    norm: str = "group"
    """`group` (8 channels per group) or `instance`"""
    side: int | None = None
    """side of the head and its masks in pixels: the view's (None), half or a quarter of it; a view of 1024 pixels that
    was upsampled from an image of 512 contains no more detail than 512"""
    at_once: int | None = 2
    """images whose activations are recomputed together in the backward pass; None: all activations are kept, as always
    with partitioned weights (ZeRO-3)"""
    compile: bool = False
    """fuse the head's small kernels in a training on a GPU (`torch.compile`); the first steps take longer"""
    modulated: bool = True
    """False: the mask token is not read"""
    skips: bool = True
    """False: the pyramid does not read SAM2's features"""
    sam2: bool = True
    """False: neither SAM2's features nor its logits are read, and the prompt itself takes the mask token's place"""

    def __post_init__(self) -> None:
        # JSON and config files contain lists; as tuples, equal options compare equal.
        levels = len(self.channels)
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "object_channels", tuple(self.object_channels))
        object.__setattr__(self, "depth", _per_level(self.depth, levels))
        object.__setattr__(self, "decoder_depth", _per_level(self.decoder_depth, levels - 1))

    @property
    def uses_features(self) -> bool:
        """Whether the pyramid reads SAM2's features."""
        return self.sam2 and self.skips

    def shape(self) -> dict[str, Any]:
        """The options on which the weights depend: all but `at_once` and `compile`."""
        names = (field.name for field in fields(self) if field.name not in ("at_once", "compile"))
        return {name: getattr(self, name) for name in names}

    def problems(self, image_size: int) -> list[str]:
        """Problems of these options with a view of side `image_size`, one sentence each."""
        levels, found = len(self.channels), []
        depths: tuple[tuple[str, Any, int], ...] = (
            ("depth", self.depth, levels),
            ("decoder_depth", self.decoder_depth, levels - 1),
        )
        for name, depth, expected in depths:
            if len(depth) != expected or min(depth, default=1) < 1:
                found.append(f"{name} is {list(depth)}; expected {expected} numbers of 1 or more, or a single one")
        if levels < 2 or min(self.channels) < 1:
            found.append(f"channels is {list(self.channels)}; expected at least two positive numbers")
        if not 1 <= len(self.object_channels) <= levels or min(self.object_channels) < 1:
            found.append(
                f"object_channels is {list(self.object_channels)}; expected one to {levels} positive numbers, at "
                "most as many as channels has"
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
        elif self.norm == "instance" and side == 2 ** (levels - 1):
            found.append(
                f"channels has {levels} levels, the last of them with one cell at side {side}, over which instance "
                "norm has no variance; use fewer levels, or norm='group'"
            )
        return [f"sam2.vessel_head.{problem}" for problem in found]


def read_options(given: Mapping[str, Any]) -> VesselHeadOptions:
    """Options from the dict of a config or a folder. Raises UserError for unknown names."""
    known = {field.name for field in fields(VesselHeadOptions)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise UserError(f"sam2.vessel_head holds {', '.join(unknown)}; it takes {', '.join(sorted(known))}")
    return VesselHeadOptions(**given)


def _per_level(depth: int | Sequence[int], levels: int) -> tuple[int, ...]:
    return (depth,) * levels if isinstance(depth, int) else tuple(depth)
