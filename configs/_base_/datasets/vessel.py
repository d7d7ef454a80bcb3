"""A dataset folder made by vesselseg prepare, augmented. Defaults: training_dataset and Augment."""

from vesselseg.training.training_data import training_dataset

data_root = "data/angiograms"  # the only place that names it
train_dataset = dict(type=training_dataset, augment=dict())
loader = dict()
