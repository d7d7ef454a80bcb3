"""ZeRO-2: frozen weights on every GPU, gradients and optimizer states partitioned.

DeepSpeed's default buckets of 5e8 elements occupy 2 GiB; the trainable weights fit buckets of 2e7.
"""

from vesselseg.training.strategy import VesselStrategy

strategy = dict(
    type=VesselStrategy,
    zero_optimization=dict(
        stage=2,
        overlap_comm=False,
        reduce_bucket_size=20_000_000,
        allgather_bucket_size=20_000_000,
    ),
)
