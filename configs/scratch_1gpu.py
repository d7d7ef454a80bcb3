"""No pretrained weights at all: a small SAM2 at 512 learns from a real archive on one GPU in minutes."""

from mmengine.config import read_base

with read_base():
    from ._base_.datasets.oriented import *
    from ._base_.models.internvl3 import *
    from ._base_.runtime.default import *
    from ._base_.runtime.zero2 import *
    from ._base_.schedules.adamw_3e import *

_trunk = dict(embed_dim=32, num_heads=1, stages=[1, 2, 3, 1], global_att_blocks=[5], window_spec=[8, 4, 16, 8])
model.sa2va.update(base="weights/tiny_base", gradient_checkpointing=False)
model.sa2va.sam2.update(variant="tiny", checkpoint=None, image_size=512, trunk=_trunk)
model.sa2va.trainable.update(llm="full", projector=True, sam2_encoder=True, vision=True)
model.loss.update(bce=1.0, dice=1.0, thin_weight=2.0, skeleton_recall=0.5, mask_target="full")
schedule.update(epochs=1000, lr=1e-3, accumulation=1, micro_batch=16, warmup_ratio=0.05, ema=0.997)
loader.update(num_workers=12)
validation.update(interval=400)
checkpoint.update(interval=400)
