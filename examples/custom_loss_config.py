"""configs/tiny_cpu.py with the loss and the metric of examples/custom_loss.py; start it in the repository's folder."""

from mmengine.config import read_base

with read_base():
    from ..configs.tiny_cpu import *

custom_imports = dict(imports=["examples.custom_loss"])
model.loss.update(terms=dict(focal_loss=5.0))
validation.update(metrics=["precision"])
