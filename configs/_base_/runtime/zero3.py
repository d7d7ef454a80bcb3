"""ZeRO-3: every GPU holds a partition of the weights and gathers a layer just before it is used; nothing on the CPU.

Each decoder layer is gathered as a whole. The prefetch bucket holds one layer of an 8B model (0.24e9 parameters), so
that a layer is transferred while the previous one computes.
"""

from vesselseg.training.strategy import VesselStrategy

strategy = dict(
    type=VesselStrategy,
    zero_optimization=dict(
        stage=3,
        overlap_comm=True,
        reduce_bucket_size=20_000_000,
        stage3_prefetch_bucket_size=250_000_000,
        stage3_max_reuse_distance=500_000_000,
    ),
)
