"""Registries of vesselseg: your own classes and functions become settings of a config by name.

    # my_loss.py                                           # in a config
    @LOSSES.register_module()                              custom_imports = dict(imports=["my_loss"])
    def focal_loss(logits, target): ...                    model.loss.update(terms=dict(focal_loss=0.5))

docs/extending.md says what each registry expects. They are children of mmengine's registries, whose names work as well.
Only training needs this module; predicting imports neither it nor mmengine.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

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
HOOKS = Registry("hook", parent=mmengine_registry.HOOKS, scope=SCOPE, locations=["vesselseg.training.launch"])
STRATEGIES = Registry(
    "strategy", parent=mmengine_registry.STRATEGIES, scope=SCOPE, locations=["vesselseg.training.strategy"]
)
LOOPS = Registry("loop", parent=mmengine_registry.LOOPS, scope=SCOPE, locations=["vesselseg.training.loop"])
# In the order in which a bare name in a config is looked up.
REGISTRIES = (MODELS, DATASETS, LOSSES, METRICS, HOOKS, STRATEGIES, LOOPS)


def registered(name: str) -> Any:
    """The class or function with this registered name, in whichever registry; None if there is none."""
    return next((found for registry in REGISTRIES if (found := registry.get(name)) is not None), None)


def resolve(target: Any) -> Any:
    """The class or function with this dotted or registered name; anything but a text is returned as it is.

    Raises ImportError.
    """
    if not isinstance(target, str):
        return target
    module, _, attribute = target.rpartition(".")
    if not module:
        found = registered(target)
        if found is None:
            raise ImportError(f"nothing is registered as {target!r}; custom_imports names modules that register things")
        return found
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise ImportError(f"module {module} has no {attribute!r}") from None


def build(values: Mapping[str, Any]) -> Any:
    """Call the class or function that `type` names (dotted or registered) with the other values as arguments."""
    return resolve(values["type"])(**{key: value for key, value in values.items() if key != "type"})


def registered_names(registry: Registry) -> list[str]:
    """Names of everything that is registered there, mmengine's own entries excluded."""
    registry.import_from_location()
    return sorted(registry.module_dict)
