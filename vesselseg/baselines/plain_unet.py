"""The U-Net that nnU-Net plans for 2D images.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, as Isensee et al.,
"nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation", Nature Methods 2021, build
it: two convolutions per level, instance normalisation, LeakyReLU, strided convolutions down to about 4 pixels,
transposed ones up, and deep supervision.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

MOST_CHANNELS = 16  # times the first level's
SMALLEST_SIDE = 4  # pixels of the deepest level
MOST_LEVELS = 8
SLOPE = 0.01  # of LeakyReLU
UNSUPERVISED = 2  # deepest levels without an output, as in nnU-Net


class PlainUNet(nn.Module):
    """forward: (batch, 3, side, side) -> logits (batch, 1, side / 2^k, side / 2^k) for k = 0, 1, ...

    side: of the images, which decides on the number of levels: 8 for 512 pixels. width: channels of the first level.
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        widths = [min(width * 2**level, width * MOST_CHANNELS) for level in range(levels(side))]
        above = [3, *widths[:-1]]
        self.encoder = nn.ModuleList(
            [_block(given, own, stride=1 if level == 0 else 2) for level, (given, own) in enumerate(zip(above, widths))]
        )
        pairs = list(pairwise(widths))
        self.up = nn.ModuleList([nn.ConvTranspose2d(deeper, own, kernel_size=2, stride=2) for own, deeper in pairs])
        self.decoder = nn.ModuleList([_block(2 * own, own) for own, _ in pairs])
        supervised = max(1, len(widths) - UNSUPERVISED)
        self.outputs = nn.ModuleList([nn.Conv2d(own, 1, kernel_size=1) for own in widths[:supervised]])
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The finest logits first; all but those are for the loss."""
        skips = []
        for block in self.encoder:
            images = block(images)
            skips.append(images)  # (batch, width, side / 2^level, side / 2^level)
        features = skips.pop()
        outputs: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            features = self.decoder[level](torch.cat([self.up[level](features), skips[level]], dim=1))
            if level < len(self.outputs):
                outputs.insert(0, self.outputs[level](features).float())
        return outputs


def levels(side: int) -> int:
    """Levels of a U-Net for images of this side: halved while it stays a whole number of at least 4 pixels."""
    count = 1
    while count < MOST_LEVELS and side % 2 == 0 and side // 2 >= SMALLEST_SIDE:
        side, count = side // 2, count + 1
    return count


def _block(given: int, width: int, stride: int = 1) -> nn.Sequential:
    """Two convolutions, each followed by a norm and an activation; the first one has the stride."""
    parts: list[nn.Module] = []
    for channels, step in ((given, stride), (width, 1)):
        parts += [
            nn.Conv2d(channels, width, kernel_size=3, stride=step, padding=1, bias=False),
            nn.InstanceNorm2d(width, eps=1e-5, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
        ]
    return nn.Sequential(*parts)
