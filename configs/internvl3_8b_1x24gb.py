"""InternVL3-8B and SAM2-L on 1 GPU(s) of 24 GB."""

from mmengine.config import read_base

with read_base():
    from ._base_.datasets.vessel import *
    from ._base_.models.internvl3 import *
    from ._base_.runtime.default import *
    from ._base_.runtime.zero2 import *
    from ._base_.schedules.adamw_3e import *

model.sa2va.base = "weights/InternVL3-8B"
