"""ZeRO-2 with the optimizer on the CPU: slower steps, less GPU memory."""

from vesselseg.engine.strategy import VesselStrategy

strategy = dict(
    type=VesselStrategy,
    zero_optimization=dict(
        stage=2,
        contiguous_gradients=True,
        overlap_comm=False,
        reduce_scatter=True,
        reduce_bucket_size=20_000_000,
        allgather_bucket_size=20_000_000,
        offload_optimizer=dict(device="cpu", pin_memory=True),
    ),
)
