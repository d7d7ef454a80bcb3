"""ZeRO-2 with the optimizer on the CPU: slower steps, less GPU memory."""

from mmengine.config import read_base

with read_base():
    from .zero2 import *

strategy.zero_optimization.update(offload_optimizer=dict(device="cpu", pin_memory=True))
