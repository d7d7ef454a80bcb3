"""For comparison only: whole tables (1.09 G parameters) train to learn five tokens.

InternVL3-8B and SAM2-L on 4 GPUs of 24 GB: ZeRO-3 with parameters and optimizer on the CPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.vessel import *
    from .._base_.models.internvl3 import *
    from .._base_.runtime.default import *
    from .._base_.runtime.zero3_offload import *
    from .._base_.schedules.adamw_3e import *

model.sa2va.base = "weights/InternVL3-8B"
model.sa2va.lora.update(dropout=0.1, modules_to_save=["embed_tokens", "lm_head"])
model.sa2va.update(fused=False, embedding_on_host=False)
strategy.whole_layers = False
