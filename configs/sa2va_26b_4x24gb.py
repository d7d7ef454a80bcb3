"""Sa2VA-26B (InternViT-6B, InternLM2.5-20B, SAM2-L of its own) on 4 GPUs of 24 GB: ZeRO-3."""

from mmengine.config import read_base

with read_base():
    from ._base_.datasets.vessel import *
    from ._base_.models.internvl3 import *
    from ._base_.runtime.stored_features import *
    from ._base_.runtime.zero3 import *
    from ._base_.schedules.adamw_3e import *

model.sa2va.base = "weights/Sa2VA-26B"
model.sa2va.trainable.high_res_convs = False
model.sa2va.sam2.checkpoint = None
schedule.update(micro_batch=4, accumulation=2)
strategy.zero_optimization.stage3_prefetch_bucket_size = 400_000_000  # one decoder layer
