"""ZeRO-2: frozen weights on every GPU; gradients and optimizer states of what trains are shared out.

DeepSpeed's default buckets of 5e8 elements take 2 GiB; what trains here fits buckets of 2e7.
"""

from vesselseg.training.strategy import VesselStrategy

strategy = dict(
    type=VesselStrategy,
    zero_optimization=dict(
        stage=2,
        contiguous_gradients=True,
        overlap_comm=False,
        reduce_scatter=True,
        reduce_bucket_size=20_000_000,
        allgather_bucket_size=20_000_000,
    ),
)
