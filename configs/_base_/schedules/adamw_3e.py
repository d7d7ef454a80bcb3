"""AdamW, linear warm-up, cosine to zero, three epochs. Optimizer, DeepSpeed and loader all read these numbers."""

schedule = dict(
    epochs=3,
    lr=2e-5,
    weight_decay=0.05,
    betas=(0.9, 0.999),
    warmup_ratio=0.1,
    accumulation=8,
    micro_batch=1,
    clip=1.0,
    max_iters=None,
)
