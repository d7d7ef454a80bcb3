"""The options of distilling, light to import: a command line declares them before any work."""

from dataclasses import dataclass

RESULTS_FILE = "distillation.json"


@dataclass(frozen=True)
class DistillOptions:
    """How a small model is made out of a big one."""

    phrases: tuple[str, ...] = ()
    """what to segment; repeat for several (default: the phrase that most objects of the training split have)"""
    minutes: float = 5.0
    """time that training may take"""
    batch: int = 4
    """images given to the model at once"""
    seed: int = 0
    """of the training, and of the choice of images whose masks it learns where not all fit"""
