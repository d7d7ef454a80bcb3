"""Metrics of one predicted mask against its truth: ``METRIC_TABLE`` defines them, ``image_metrics`` computes them.

docs/evaluation.md explains each one and when to use it.
"""

from vesselseg.evaluation.metrics.image import image_metrics
from vesselseg.evaluation.metrics.table import EMPTY_MASK_RULE, METRIC_TABLE, METRICS, Metric

__all__ = ["EMPTY_MASK_RULE", "METRICS", "METRIC_TABLE", "Metric", "image_metrics"]
