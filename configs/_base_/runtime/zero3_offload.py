"""ZeRO-3 with parameters and optimizer on the CPU: the least GPU memory, and every layer crosses the bus each step."""

from mmengine.config import read_base

with read_base():
    from .zero3 import *

strategy.zero_optimization.update(
    stage3_prefetch_bucket_size=20_000_000,
    stage3_max_live_parameters=300_000_000,
    stage3_max_reuse_distance=300_000_000,
    offload_optimizer=dict(device="cpu", pin_memory=True),
    offload_param=dict(device="cpu", pin_memory=True),
)
