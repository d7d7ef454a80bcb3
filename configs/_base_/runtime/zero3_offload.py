"""ZeRO-3 with parameters and optimizer on the CPU: the least GPU memory, and every layer crosses the bus each step."""

from vesselseg.engine.strategy import VesselStrategy

strategy = dict(
    type=VesselStrategy,
    zero_optimization=dict(
        stage=3,
        contiguous_gradients=True,
        overlap_comm=True,
        reduce_bucket_size=20_000_000,
        stage3_prefetch_bucket_size=20_000_000,
        stage3_param_persistence_threshold=100_000,
        stage3_max_live_parameters=300_000_000,
        stage3_max_reuse_distance=300_000_000,
        offload_optimizer=dict(device="cpu", pin_memory=True),
        offload_param=dict(device="cpu", pin_memory=True),
    ),
)
