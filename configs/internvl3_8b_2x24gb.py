"""InternVL3-8B and SAM2-L on 2 GPUs of 24 GB: ZeRO-2, 32 images per optimizer step."""

from mmengine.config import read_base

with read_base():
    from ._base_.datasets.vessel import *
    from ._base_.models.internvl3 import *
    from ._base_.runtime.stored_features import *
    from ._base_.runtime.zero2 import *
    from ._base_.schedules.adamw_3e import *

model.sa2va.base = "weights/InternVL3-8B"
model.sa2va.trainable.high_res_convs = False
model.sa2va.gradient_checkpointing = 22
schedule.update(micro_batch=16, accumulation=1)
