"""Validation, checkpoints and logging at the default intervals; defaults: vesselseg/config/settings.py."""

validation = dict()
checkpoint = dict()
logging = dict()
features = dict()
