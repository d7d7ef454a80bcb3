"""What training takes from xtuner, and what xtuner 0.2.0 and mmengine 0.10.7 lack beside newer packages.

- xtuner imports `is_safetensors_available` from transformers; transformers 5 always has safetensors, and not this name.
- mmengine registers DeepSpeed's 1-bit optimizers when a strategy is made; DeepSpeed 0.19 has none. No config of this
  project names one of them.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import mmengine._strategy.deepspeed as mmengine_deepspeed
import transformers.utils

if not hasattr(transformers.utils, "is_safetensors_available"):
    transformers.utils.is_safetensors_available = lambda: True  # type: ignore[attr-defined]


def _register_no_optimizers() -> list[Any]:
    return []


if importlib.util.find_spec("deepspeed.runtime.fp16.onebit") is None:
    mmengine_deepspeed.register_deepspeed_optimizers = _register_no_optimizers

from xtuner.engine._strategy import DeepSpeedStrategy  # noqa: E402
from xtuner.engine.runner import TrainLoop  # noqa: E402

__all__ = ["DeepSpeedStrategy", "TrainLoop"]
