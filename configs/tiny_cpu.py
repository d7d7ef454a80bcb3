"""The real classes with small sizes, from random weights: 2 CPU processes learn synthetic angiograms in minutes."""

from mmengine.config import read_base

with read_base():
    from ._base_.datasets.vessel import *
    from ._base_.models.internvl3 import *
    from ._base_.runtime.default import *
    from ._base_.runtime.zero2 import *
    from ._base_.schedules.adamw_3e import *

data_root = "data/synthetic"
_trunk = dict(embed_dim=32, num_heads=1, stages=[1, 2, 3, 1], global_att_blocks=[5], window_spec=[8, 4, 16, 8])
model.sa2va.update(base="weights/tiny_base", gradient_checkpointing=False)
model.sa2va.sam2.update(checkpoint=None, image_size=256, trunk=_trunk)
model.sa2va.lora.update(r=8, alpha=16, dropout=0.0)
model.sa2va.trainable.update(llm="full", projector=True, sam2_encoder=True, vision=True)
model.loss.update(mask_target="full")
train_dataset.augment.update(vertical_flip=0.5, quarter_turns=True)
schedule.update(epochs=40, lr=1e-3, accumulation=1, micro_batch=4)
validation.update(interval=100, max_images=16)
checkpoint.update(interval=100)
