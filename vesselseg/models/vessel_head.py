"""Masks at the image's own resolution: a U-Net over image and SAM2's features, modulated by each object's mask token.

`Pyramid` runs once per image and does not depend on objects. `ObjectDecoder` is narrow, runs once per object, and is
modulated by the object's mask token at every level (FiLM, Perez et al. 2018, arXiv 1709.07871). The output is a
correction of SAM2's own logits that starts at zero, so that an untrained head does not change SAM2's masks.
U-Net: Ronneberger et al. 2015, arXiv 1505.04597.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vesselseg.dataset.batch import normalised_view
from vesselseg.errors import UserError
from vesselseg.models.vessel_head_options import VesselHeadOptions

TOKEN_DIM = 256  # width of SAM2's mask tokens
SAM2_STRIDES = (4, 8, 16)  # of the view
SAM2_CHANNELS = (32, 64, 256)  # at these strides, after the mask decoder's own convolutions
CHANNELS_PER_GROUP = 8
SLOPE = 0.01  # of LeakyReLU
FILM_STD = 0.1  # of the initial weights of scales and shifts: large enough that objects differ from the first step
OBJECTS_AT_ONCE = 16  # larger numbers are decoded in pieces; 16 at side 512 keep 0.6 GiB for the backward pass


class VesselHead(nn.Module):
    """SAM2's logits and the square view -> mask logits at `side`. image_size: pixels of the view's side.

    Raises UserError for options that do not fit each other or the view.
    """

    def __init__(self, options: VesselHeadOptions, image_size: int) -> None:
        super().__init__()
        problems = options.problems(image_size)
        if problems:
            raise UserError("\n".join(problems))
        self.options = options
        self.at_once = options.at_once
        self._compiled: Callable[..., Tensor] | None = None
        self.side = options.side or image_size
        self.pixels = image_size // self.side  # side, in pixels of the view, of one pixel of the head
        # SAM2's features enter at the level with as many cells: if the head's side is half the view's, SAM2's
        # stride 4 is stride 2 of the head.
        levels = [(stride // self.pixels).bit_length() - 1 for stride in SAM2_STRIDES]
        deepest = len(options.channels) - 1
        met = {level: channels for level, channels in zip(levels, SAM2_CHANNELS) if level <= deepest}
        self.pyramid = Pyramid(options, 3 * self.pixels**2, met if options.uses_features else {})
        # The level with as many cells as SAM2's logits, or the deepest level of the object decoder.
        coarse = min(levels[0], len(options.object_channels) - 1) if options.sam2 else None
        self.objects = ObjectDecoder(options, coarse)
        self.apply(_initialise)
        self.objects.start()

    def forward(
        self,
        coarse: Tensor,
        features: Sequence[Tensor],
        tokens: Tensor,
        view: Tensor | None,
        image_of_object: Tensor,
        objects_per_image: Sequence[int] | None = None,
    ) -> Tensor:
        """Refine SAM2's logits.

        coarse: (objects, image_size / 4, image_size / 4), SAM2's logits. features: SAM2's at strides 4, 8 and 16,
        (images, 32, ...), (images, 64, ...), (images, 256, ...). tokens: (objects, 256), the mask tokens that predicted
        the logits. view: (images, 3, image_size, image_size), normalised, or uint8. image_of_object: (objects,) int64.
        objects_per_image: numbers of objects in main memory, if objects are in the order of their images; training
        needs it to recompute a few images at a time. Returns (objects, side, side), logits before sigmoid.
        """
        if view is None:
            raise ValueError("the vessel head reads the square view, and none was given")
        if objects_per_image is None or not self._recomputes():
            return self._function()(coarse, tokens, image_of_object, view, *features)
        pieces = self._pieces(coarse, features, tokens, view, image_of_object, objects_per_image)
        return torch.cat([_recomputed(self._function(), *piece) for piece in pieces])

    def _function(self) -> Callable[..., Tensor]:
        """`_refine`, compiled if the options say so, in training on a GPU; predicting would compile for many shapes."""
        if not (self.options.compile and self.training and next(self.parameters()).is_cuda):
            return self._refine
        if self._compiled is None:
            self._compiled = torch.compile(self._refine, dynamic=False, options=_inductor_options())
        return self._compiled

    def _recomputes(self) -> bool:
        return self.at_once is not None and self.training and torch.is_grad_enabled()

    def _pieces(
        self,
        coarse: Tensor,
        features: Sequence[Tensor],
        tokens: Tensor,
        view: Tensor,
        image_of_object: Tensor,
        objects_per_image: Sequence[int],
    ) -> Iterator[tuple[Tensor | None, ...]]:
        """Arguments of `_refine`, for `at_once` images at a time."""
        end = 0
        for first in range(0, len(objects_per_image), self.at_once or 1):
            images = slice(first, first + (self.at_once or 1))
            start, end = end, end + sum(objects_per_image[images])
            objects = slice(start, end)
            of_images = (view[images], *(level[images] for level in features))
            # With one object per image, levels are used directly: indexing would copy them, and its gradient is slow.
            single = all(count == 1 for count in objects_per_image[images])
            yield coarse[objects], tokens[objects], None if single else image_of_object[objects] - first, *of_images

    def _refine(
        self,
        coarse: Tensor,
        tokens: Tensor,
        image_of_object: Tensor | None,
        view: Tensor,
        stride_4: Tensor,
        stride_8: Tensor,
        stride_16: Tensor,
    ) -> Tensor:
        # (images, 3, image_size, image_size) -> (images, 3 pixels^2, side, side)
        image = functional.pixel_unshuffle(normalised_view(view, tokens.dtype), self.pixels)
        levels = self.pyramid(image, (stride_4, stride_8, stride_16))
        in_pieces = (
            self._recomputes() or not torch.is_grad_enabled()
        )  # else everything is kept, and the graph can be traced
        if image_of_object is None or not in_pieces or tokens.shape[0] <= OBJECTS_AT_ONCE:
            return self._of_objects(levels, coarse, tokens, image_of_object)
        pieces = zip(*(one.split(OBJECTS_AT_ONCE) for one in (coarse, tokens, image_of_object)))
        return torch.cat([_recomputed(self._of_objects, levels, *piece) for piece in pieces])

    def _of_objects(
        self, levels: Sequence[Tensor], coarse: Tensor, tokens: Tensor, image_of_object: Tensor | None
    ) -> Tensor:
        # Each object gets the levels of its image: (images, ...) -> (objects, ...).
        of_objects = levels if image_of_object is None else [level[image_of_object] for level in levels]
        correction: Tensor = self.objects(of_objects, coarse, tokens)
        if not self.options.sam2:
            return correction
        return _resized(coarse.unsqueeze(1), self.side).squeeze(1) + correction


class Pyramid(nn.Module):
    """A U-Net whose encoder adds SAM2's features at the levels with the same number of cells.

    sam2_channels: channels of SAM2's features by level of the pyramid. Returns, for every level of the object decoder,
    (images, object_channels, side / stride, side / stride), finest first.
    """

    def __init__(self, options: VesselHeadOptions, image_channels: int, sam2_channels: Mapping[int, int]) -> None:
        super().__init__()
        widths, depth, decoder_depth = options.channels, _tuple(options.depth), _tuple(options.decoder_depth)
        before = (image_channels, *widths[:-1])
        self.first_sam2_level = min(sam2_channels, default=len(widths))
        self.enter = nn.ModuleList(
            nn.Conv2d(given, width, kernel_size=3, stride=2 if level else 1, padding=1)
            for level, (given, width) in enumerate(zip(before, widths))
        )
        self.settle = nn.ModuleList(_norm_act(width, options.norm) for width in widths)
        self.skips = nn.ModuleDict(
            {str(level): nn.Conv2d(channels, widths[level], kernel_size=1) for level, channels in sam2_channels.items()}
        )
        self.encoder = nn.ModuleList(
            nn.Sequential(*(_block(width, width, options) for _ in range(count))) for width, count in zip(widths, depth)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(deeper, width, kernel_size=2, stride=2) for width, deeper in pairwise(widths)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(_block(2 * width, width, options), *(_block(width, width, options) for _ in range(count - 1)))
            for width, count in zip(widths, decoder_depth)
        )
        self.narrow = nn.ModuleList(
            nn.Conv2d(width, narrow, kernel_size=1) for width, narrow in zip(widths, options.object_channels)
        )

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """image: (images, channels, side, side). features: SAM2's at strides 4, 8, 16 of the view."""
        level = image
        kept = []  # the encoder's outputs, which the decoder concatenates
        for number, (enter, settle, encoder) in enumerate(zip(self.enter, self.settle, self.encoder)):
            level = enter(level)
            if str(number) in self.skips:
                level = level + self.skips[str(number)](features[number - self.first_sam2_level])
            level = encoder(settle(level))
            kept.append(level)
        decoded = [kept.pop()]  # deepest first
        for up, decoder in zip(reversed(self.up), reversed(self.decoder)):
            decoded.append(decoder(torch.cat([up(decoded[-1]), kept.pop()], dim=1)))
        return [narrow(level) for narrow, level in zip(self.narrow, reversed(decoded))]


class ObjectDecoder(nn.Module):
    """From the deepest to the finest level: the image's level plus the upsampled deeper level, then a residual branch:
    normalised, scaled and shifted by the mask token, one convolution.

    coarse_level: the level at which SAM2's logits are added as one more input channel; None: not at all.
    """

    def __init__(self, options: VesselHeadOptions, coarse_level: int | None) -> None:
        super().__init__()
        self.widths = tuple(options.object_channels)
        self.coarse_level = coarse_level
        self.starts_at_zero = options.sam2
        self.film = Film(self.widths) if options.modulated else None
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(deeper, width, kernel_size=2, stride=2) for width, deeper in pairwise(self.widths)
        )
        self.coarse = None if coarse_level is None else nn.Conv2d(1, self.widths[coarse_level], 3, padding=1)
        self.norm = nn.ModuleList(_norm(width, options.norm) for width in self.widths)
        self.mix = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for width in self.widths)
        self.answer = nn.Conv2d(self.widths[0], 1, kernel_size=1)

    def start(self) -> None:
        """Initial weights of the layers that differ from other convolutions."""
        if self.film is not None:
            nn.init.normal_(self.film.turn.weight, std=FILM_STD)
        if self.starts_at_zero:
            nn.init.zeros_(self.answer.weight)

    def forward(self, levels: Sequence[Tensor], coarse: Tensor, tokens: Tensor) -> Tensor:
        """levels: `Pyramid`'s, one image per object. coarse: (objects, h, w). Returns (objects, side, side)."""
        modulation = self.film(tokens) if self.film is not None else None
        below = levels[-1]
        for level in reversed(range(len(self.widths))):
            merged = levels[level]
            if level < len(self.up):
                merged = merged + self.up[level](below)
            if self.coarse is not None and level == self.coarse_level:
                # As probabilities: logits are unbounded, and far from the border their size has no meaning.
                merged = merged + self.coarse(_resized(coarse.sigmoid().unsqueeze(1), merged.shape[-1]))
            modulated = self.norm[level](merged)
            if modulation is not None:
                scale, shift = modulation[level]
                modulated = torch.addcmul(shift, modulated, scale)  # scale * modulated + shift
            below = merged + self.mix[level](functional.leaky_relu(modulated, SLOPE, inplace=True))
        finest: Tensor = self.answer(functional.leaky_relu(below, SLOPE))
        return finest.squeeze(1)


class Film(nn.Module):
    """Mask tokens -> scale and shift of every channel of every level (FiLM, Perez et al. 2018)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.sizes = [2 * width for width in widths]
        self.norm = nn.LayerNorm(TOKEN_DIM)
        self.hidden = nn.Linear(TOKEN_DIM, TOKEN_DIM)
        self.turn = nn.Linear(TOKEN_DIM, sum(self.sizes))

    def forward(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """tokens: (objects, 256). Returns per level (scale, shift), each (objects, width, 1, 1), scales around 1."""
        values = self.turn(functional.gelu(self.hidden(self.norm(tokens))))[..., None, None]  # (objects, all, 1, 1)
        halves = [of_level.chunk(2, dim=1) for of_level in values.split(self.sizes, dim=1)]
        return [(1 + scale, shift) for scale, shift in halves]


def _block(given: int, width: int, options: VesselHeadOptions) -> nn.Module:
    """(images, given, h, w) -> (images, width, h, w)."""
    if options.residual:
        return ResidualBlock(given, width, options)
    convolution = nn.Conv2d(given, width, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, *_norm_act(width, options.norm))


class ResidualBlock(nn.Module):
    """Two convolutions, each with a norm, and LeakyReLU; the input is added (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, given: int, width: int, options: VesselHeadOptions) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(given, width, kernel_size=3, padding=1, bias=False)
        self.norm_1 = _norm_act(width, options.norm)
        self.conv_2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm_2 = _norm(width, options.norm)
        self.shortcut = nn.Identity() if given == width else nn.Conv2d(given, width, kernel_size=1, bias=False)

    def forward(self, level: Tensor) -> Tensor:
        """(images, given, h, w) -> (images, width, h, w)."""
        residual = self.norm_2(self.conv_2(self.norm_1(self.conv_1(level))))
        return functional.leaky_relu(residual + self.shortcut(level), SLOPE, inplace=True)


def _inductor_options() -> dict[str, Any]:
    """Disable a fusion of reductions that fails in torch 2.11 for heads with eight levels ("256 v.s. 3072")."""
    return {name: False for name in ("triton.mix_order_reduction",) if name in torch._inductor.list_options()}


def _recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The function's output; its activations are recomputed in the backward pass. It must not draw random numbers."""
    output: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return output


def _norm_act(width: int, kind: str) -> nn.Sequential:
    # In place: the backward pass needs the norm's input and the activation's output, but nothing in between.
    return nn.Sequential(_norm(width, kind), nn.LeakyReLU(SLOPE, inplace=True))


def _norm(width: int, kind: str) -> nn.GroupNorm:
    """Group (Wu and He 2018) or instance norm, which is one channel per group; both work with one image per batch."""
    groups = width if kind == "instance" else max(1, width // CHANNELS_PER_GROUP)
    return nn.GroupNorm(groups if width % groups == 0 else 1, width)


def _initialise(module: nn.Module) -> None:
    """Initial weights for a network with LeakyReLU (He et al. 2015, arXiv 1502.01852)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _resized(level: Tensor, side: int) -> Tensor:
    """(objects, channels, h, w) -> (objects, channels, side, side)."""
    return functional.interpolate(level, size=(side, side), mode="bilinear", align_corners=False)


def _tuple(depth: int | Sequence[int]) -> tuple[int, ...]:
    """For the type checker: options hold a number per level."""
    return (depth,) if isinstance(depth, int) else tuple(depth)
