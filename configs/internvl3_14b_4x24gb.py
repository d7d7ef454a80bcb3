"""InternVL3-14B and SAM2-L on 4 GPUs of 24 GB: ZeRO-3, 32 images per optimizer step."""

from mmengine.config import read_base

with read_base():
    from ._base_.datasets.vessel import *
    from ._base_.models.internvl3 import *
    from ._base_.runtime.stored_features import *
    from ._base_.runtime.zero3 import *
    from ._base_.schedules.adamw_3e import *

model.sa2va.base = "weights/InternVL3-14B"
model.sa2va.trainable.high_res_convs = False
schedule.update(micro_batch=8, accumulation=1)
strategy.zero_optimization.stage3_prefetch_bucket_size = 300_000_000  # one decoder layer
