"""What a run writes and how often, in iterations."""

validation = dict(interval=200, split="val", max_images=None)
checkpoint = dict(interval=200, keep=2)
logging = dict(interval=10, tensorboard=True)
features = dict(store=None, folder="work_dirs/features", variants=1)
precision = "auto"
seed = 0
load_from = None
