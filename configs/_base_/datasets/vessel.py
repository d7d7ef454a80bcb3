"""A dataset folder made by tools/prepare_data.py; data_root is the one place that names it."""

from vesselseg.training.training_data import training_dataset

data_root = "data/angiograms"
train_dataset = dict(
    type=training_dataset,
    split="train",
    max_length=2048,
    augment=dict(
        horizontal_flip=0.5, rotation=10.0, scale=0.1, translation=0.05, brightness=0.1, contrast=0.2, gamma=0.0
    ),
    vary_questions=True,
    limit=None,
)
loader = dict(num_workers=2, prefetch=2)
