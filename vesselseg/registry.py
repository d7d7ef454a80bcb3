"""Registries of vesselseg: children of mmengine's, so that a config may name a class by `type="VesselDataset"` too.

Only training needs this module; predicting imports neither it nor mmengine.
"""

from __future__ import annotations

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry

SCOPE = "vesselseg"

DATASETS = Registry(
    "dataset", parent=mmengine_registry.DATASETS, scope=SCOPE, locations=["vesselseg.training.training_data"]
)
MODELS = Registry(
    "model", parent=mmengine_registry.MODELS, scope=SCOPE, locations=["vesselseg.training.training_model"]
)
LOSSES = Registry("loss", scope=SCOPE, locations=["vesselseg.training.training_model"])
METRICS = Registry("metric", parent=mmengine_registry.METRICS, scope=SCOPE, locations=["vesselseg.training.validation"])
HOOKS = Registry("hook", parent=mmengine_registry.HOOKS, scope=SCOPE, locations=["vesselseg.training"])
STRATEGIES = Registry(
    "strategy", parent=mmengine_registry.STRATEGIES, scope=SCOPE, locations=["vesselseg.training.strategy"]
)
LOOPS = Registry("loop", parent=mmengine_registry.LOOPS, scope=SCOPE, locations=["vesselseg.training.loop"])
