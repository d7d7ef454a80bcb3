"""As default.py; what the frozen encoders make of an image is computed once, stored on disk and read back.

The encoders leave the GPU (with ZeRO-3 their share stays) and no step waits for them. One view of each image is stored:
its augmentation is drawn once and every epoch sees the same picture. features.variants=3 gives each of three epochs a
picture of its own, for three times the disk (about 10 MB per view with SAM2 at 1024 and frozen high_res_convs) and as
much encoding as without a store. features.store="memory" keeps the store below /dev/shm.
"""

from mmengine.config import read_base

with read_base():
    from .default import *

features.update(store="disk")
