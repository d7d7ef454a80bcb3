"""The options of the baselines, light to import: a command line declares them before any work."""

from dataclasses import dataclass

from vesselseg.evaluation.errors import EvaluationError

TUNING_IMAGES = 24  # of the training split, on which the Frangi filter's parameters are searched
BASELINES = "baselines"  # the sub-folder of their predictions: what marks the output folder of a comparison
_STRIDE = 32  # the U-Net's encoder halves the picture five times


@dataclass(frozen=True)
class UNetOptions:
    """How the U-Net is trained. Raises EvaluationError for sizes and limits that it cannot work with."""

    # The image is stretched to a square of this size.
    size: int = 512
    """side of the square in pixels, a multiple of 32"""
    # Training ends with whichever limit comes first; only where that is the epochs do two runs agree.
    epochs: int = 200
    """at most"""
    minutes: float = 10.0
    """at most"""
    batch: int = 4
    """images per step"""
    learning_rate: float = 1e-3
    """of AdamW, constant"""
    seed: int = 0
    """of weights and augmentation"""

    def __post_init__(self) -> None:
        if self.size < 2 * _STRIDE or self.size % _STRIDE:
            raise EvaluationError(f"--size {self.size}: expected a multiple of {_STRIDE} from {2 * _STRIDE}")
        if self.epochs < 1 or self.batch < 1 or not self.minutes > 0:
            found = f"--epochs {self.epochs}, --minutes {self.minutes}, --batch {self.batch}"
            raise EvaluationError(f"{found}: expected 1 or more, above 0, 1 or more")
