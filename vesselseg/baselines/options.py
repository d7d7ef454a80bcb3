"""Options of the baselines, light to import for the command line."""

from dataclasses import dataclass
from typing import Literal

from vesselseg.evaluation.errors import EvaluationError

TUNING_IMAGES = 24  # of the training split, to search the Frangi filter's parameters
BASELINES = "baselines"  # sub-folder of their predictions, which marks the output folder of a comparison
SIDE_MULTIPLE = 32  # of the U-Net's square, which is halved at least four times

Optimizer = Literal["sgd", "adamw"]
Augmentation = Literal["nnunet", "oriented"]


@dataclass(frozen=True)
class UNetOptions:
    """Training options; the defaults are nnU-Net's recipe for 2D images of 512 pixels with a shorter schedule.

    Raises EvaluationError for invalid sizes and limits.
    """

    # Every image is resized to a square.
    size: int = 512
    """side of the square in pixels, a multiple of 32"""
    width: int = 32
    """channels of the first level; each deeper one has twice as many, up to 16 times"""
    # Training ends after epochs or minutes, whichever is first; a run that minutes end is not reproducible.
    epochs: int = 100
    """at most"""
    steps: int = 50
    """at least, per epoch; with few images an epoch is several passes over them"""
    minutes: float = 30.0
    """at most"""
    batch: int = 12
    """images per step"""
    optimizer: Optimizer = "sgd"
    """sgd: momentum 0.99, polynomial decay; adamw: cosine decay, averaged weights"""
    learning_rate: float | None = None
    """at the start; None: 0.01 of sgd, 0.001 of adamw"""
    augment: Augmentation = "nnunet"
    """oriented: no mirrored images, rotations up to 25 degrees"""
    seed: int = 0
    """of weights and augmentation"""
    compile: bool = False
    """compile the network: faster on a GPU after the first minute"""

    def __post_init__(self) -> None:
        if self.size < 2 * SIDE_MULTIPLE or self.size % SIDE_MULTIPLE:
            raise EvaluationError(
                f"--size {self.size}: expected a multiple of {SIDE_MULTIPLE} from {2 * SIDE_MULTIPLE}"
            )
        counts = {name: getattr(self, name) for name in ("epochs", "steps", "batch", "width")}
        if min(counts.values()) < 1 or not self.minutes > 0:
            found = ", ".join(f"--{name} {value}" for name, value in {**counts, "minutes": self.minutes}.items())
            raise EvaluationError(f"{found}: expected 1 or more, and minutes above 0")
