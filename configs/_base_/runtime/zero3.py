"""ZeRO-3: every GPU holds its share of the weights and gathers a layer just before it is used; nothing on the CPU.

Each decoder layer is gathered as a whole; the bucket of what is fetched ahead holds one layer of an 8B model (0.24e9
parameters), so that a layer travels while the one before it computes.
"""

from vesselseg.training.strategy import VesselStrategy

strategy = dict(
    type=VesselStrategy,
    zero_optimization=dict(
        stage=3,
        contiguous_gradients=True,
        overlap_comm=True,
        reduce_bucket_size=20_000_000,
        stage3_prefetch_bucket_size=250_000_000,
        stage3_param_persistence_threshold=100_000,
        stage3_max_live_parameters=1_000_000_000,
        stage3_max_reuse_distance=500_000_000,
    ),
)
