"""Options of an evaluation, light to import for the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vesselseg.imaging.regions import Fill
from vesselseg.inference.post_processing import NO_POST_PROCESSING, PostProcessing

AUTO = "auto"  # the threshold is searched on the validation split
RESULTS_FILE = "results.json"
# Metrics whose best threshold can be searched, from pixel counts at every threshold; that of precision or recall alone
# is trivial.
COUNT_METRICS = ("dice", "iou", "accuracy", "balanced_accuracy", "mcc")
# Metrics that need a mask per threshold: searched at fewer thresholds, on request.
MASK_METRICS = ("cldice", "hd", "hd95", "assd", "nsd", "betti_0_error", "betti_1_error", "components_error")


@dataclass(frozen=True)
class EvaluationOptions:
    """What is computed in addition to the metrics at one threshold."""

    metric: str = "dice"
    """metric that auto optimises on the validation split"""
    tta: Literal["flips"] | None = None
    """average the probabilities over flipped images, at 4 x the time"""
    post_processing: PostProcessing = NO_POST_PROCESSING
    """of the masks, after the threshold"""
    calibrate: bool = False
    """fit a temperature on the validation split"""
    fill: Fill | None = None
    """pixels of the truth's polygons (default: the dataset's); coco for figures that are compared with papers"""
    subgroups: Path | None = None
    """CSV table with columns image (or group) and view, centre ..."""

    @property
    def flips(self) -> bool:
        """Whether probabilities are averaged over flipped images."""
        return self.tta is not None
