"""As default.py, with the frozen encoders' outputs computed once, stored on disk and read back.

The encoders leave the GPU (with ZeRO-3 their partitions stay) and no step waits for them. One view of each image is
stored: its augmentation is drawn once and every epoch sees the same image. features.variants=3 stores a different view
for each of three epochs, for three times the disk space (about 10 MB per view with SAM2 at 1024 and frozen
high_res_convs) and as much encoding as without a store. features.store="memory" keeps the store in /dev/shm.
"""

from mmengine.config import read_base

with read_base():
    from .default import *

features.update(store="disk")
