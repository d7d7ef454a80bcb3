"""Before training: the frozen encoders' outputs for every view are computed and stored; the encoders leave the GPU."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import deepspeed
import PIL
import torch
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vesselseg.config.settings import Features, Loader
from vesselseg.dataset.batch import EncodedViews
from vesselseg.dataset.feature_store import FEATURES_VERSION, VIEW, FeatureStore, weights_fingerprint
from vesselseg.dataset.image_views import to_pixels
from vesselseg.dataset.vessel_dataset import VesselDataset, View
from vesselseg.errors import UserError
from vesselseg.machine import GIB
from vesselseg.models.build import HEADS
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.sam2_grounding import IMAGES_AT_ONCE
from vesselseg.registry import HOOKS
from vesselseg.training.memory_limit import available_bytes

logger = logging.getLogger(__name__)
MEMORY_FOLDER = Path("/dev/shm")
WRITERS = 2  # threads that write while the GPU computes
PROGRESS_EVERY_S = 10.0
ViewNames = dict[tuple[int, int], str]  # (index of the image, number of its view) -> file


@HOOKS.register_module()
class FeatureHook(Hook):
    """Fills the feature store before training and makes the dataset read from it."""

    priority = "HIGH"  # after the start report, before the clock starts

    def __init__(self, settings: Features, loader: Loader, dataset: VesselDataset) -> None:
        self.settings = settings
        self.loader = loader
        self.dataset = dataset
        self.usage: Any = None

    def before_train(self, runner: Any) -> None:
        """Compute missing features; from now on only validation needs the encoders."""
        sa2va, partitioned = runner.model.model.module.sa2va, runner.strategy.stage == 3
        self.store = FeatureStore(store_root(self.settings), store_key(sa2va, self.dataset))
        if self.settings.store == "memory":
            self.usage = self.store.use()
        self.store.create()
        names = shared_view_names(self.dataset, self.settings.variants)
        with runner.strategy.ready_to_predict():
            fill(sa2va, self.dataset, self.store, names, self.settings, self.loader.num_workers, lockstep=partitioned)
        self.dataset.use_features(self.store, names)
        if not partitioned:
            move_encoders(sa2va, torch.device("cpu"))

    def after_train(self, runner: Any) -> None:
        """Free main memory; files on disk are kept for the next run."""
        if self.usage is None:
            return
        self.store.leave(self.usage)
        torch.distributed.barrier()
        if local_rank_and_size()[0] == 0 and not self.store.remove_unless_used():
            logger.info("features stay in %s: another run uses them", self.store.folder)


def store_root(settings: Features) -> Path:
    """Parent folder of the stores."""
    if settings.store == "memory":
        return MEMORY_FOLDER / f"vesselseg_features_{os.getuid()}"
    return Path(settings.folder)


def store_key(sa2va: Sa2VA, dataset: VesselDataset) -> dict[str, Any]:
    """Everything that features depend on except the images; a collective call where weights are partitioned."""
    config, augment = sa2va.config, dataset.augment
    # The heads read features and do not change them.
    grounding = {name: value for name, value in config.grounding_config.items() if name not in HEADS}
    return {
        "features_version": FEATURES_VERSION,
        "weights": weights_fingerprint(_encoder_weights(sa2va)),
        "behind": sorted(sa2va.encoders()),  # a new name of this key would make every existing store invalid
        VIEW: sa2va.grounding.sees_view,
        "dtype": str(sa2va.dtype),
        "shapes": [config.vision_config, grounding, config.downsample_ratio],
        "views": asdict(dataset.views),
        "augment": None if augment is None else {**asdict(augment), "seed": dataset.seed},
        "versions": {
            **{name: version(name) for name in ("torch", "sam2", "transformers")},
            "pillow": PIL.__version__,
            "opencv": cv2.__version__,
        },
    }


def _encoder_weights(sa2va: Sa2VA) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, each gathered while it is read."""
    modules: dict[str, nn.Module] = sa2va.encoders()
    entries = {f"{part}.{name}": one for part, module in modules.items() for name, one in _entries(module)}
    entries["no_mem_embed"] = sa2va.grounding.sam2.no_mem_embed
    for name, tensor in entries.items():
        with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
            yield name, tensor


def _entries(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def shared_view_names(dataset: VesselDataset, variants: int) -> ViewNames:
    """File names of all views; each process reads its part of the images."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    views = [(index, number) for index in range(rank, len(dataset), world) for number in range(variants)]
    gathered: list[Any] = [None] * world
    torch.distributed.all_gather_object(gathered, {view: dataset.view_name(*view) for view in views})
    return {view: name for share in gathered for view, name in share.items()}


def local_rank_and_size() -> tuple[int, int]:
    """(rank of this process on its machine, number of processes there)."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def fill(
    sa2va: Sa2VA,
    dataset: VesselDataset,
    store: FeatureStore,
    names: ViewNames,
    settings: Features,
    workers: int,
    lockstep: bool = False,
) -> None:
    """Compute the views that are missing in the store; a collective call in which each process computes its part.

    lockstep: weights are partitioned (ZeRO-3), so every process runs the same number of forward passes.
    Raises UserError if there is too little space.
    """
    everyone = torch.distributed.get_rank(), torch.distributed.get_world_size()
    # Machines do not share memory, and perhaps not the disk: a second round checks for files of other machines.
    rounds = [local_rank_and_size()] if settings.store == "memory" else [everyone, local_rank_and_size()]
    store.remove_abandoned()
    views = {name: view for view, name in sorted(names.items(), reverse=True)}  # identical views share a file
    for rank, size in dict.fromkeys(rounds):
        missing = [name for name in sorted(views)[rank::size] if not store.holds(name)]
        counts: list[Any] = [None] * everyone[1]
        torch.distributed.all_gather_object(counts, len(missing))
        if size == everyone[1] or settings.store == "memory":
            _announce(store, len(views), sum(counts))
        if any(counts):
            share = Share(missing, views, size, longest=max(counts) if lockstep else len(missing))
            Filling(sa2va, dataset, store, share, workers).run()
        torch.distributed.barrier()
    logger.info("features: %.2f GiB in %s", store.bytes() / GIB, store.folder)


def _announce(store: FeatureStore, views: int, missing: int) -> None:
    if missing:
        logger.info("features: %d of %d views to compute, kept in %s", missing, views, store.folder)
    else:
        logger.info("features: all %d views are stored already", views)


@dataclass(frozen=True)
class Share:
    """One process's part of the work.

    missing: names of its files. views: of all names. processes: number of processes that write to the same store.
    longest: number of views to compute: with partitioned weights, as many as the process with the most.
    """

    missing: list[str]
    views: Mapping[str, tuple[int, int]]
    processes: int
    longest: int

    def names(self) -> list[str]:
        """Names of the views to compute, padded with repetitions."""
        spare = self.missing[:1] or sorted(self.views)[:1]
        return self.missing + spare * (self.longest - len(self.missing))


class _Views(Dataset):
    def __init__(self, dataset: VesselDataset, views: Sequence[tuple[int, int]]) -> None:
        self.dataset = dataset
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, place: int) -> View:
        return self.dataset.view(*self.views[place])


@dataclass
class Filling:
    """Loads, encodes and writes one process's part in parallel."""

    sa2va: Sa2VA
    dataset: VesselDataset
    store: FeatureStore
    share: Share
    workers: int

    def run(self) -> None:
        """Compute and write all views."""
        names = self.share.names()
        loader = DataLoader(
            _Views(self.dataset, [self.share.views[name] for name in names]),
            batch_size=IMAGES_AT_ONCE,
            num_workers=self.workers,
            collate_fn=list,
            generator=torch.Generator().manual_seed(0),
        )
        training = self.sa2va.training
        self.sa2va.eval()
        progress = FillProgress(len(names), self.share.processes)
        with ThreadPoolExecutor(WRITERS) as pool:
            pending: list[Future] = []
            for first, views in zip(range(0, len(names), IMAGES_AT_ONCE), loader):
                encoded = encode_each(self.sa2va, views)
                if first == 0:
                    check_space(
                        self.store.folder, _bytes(encoded[0], views[0].masks) * len(names) * self.share.processes
                    )
                # Repeated views are not written: two threads would write the same file.
                for name, one, view in zip(self.share.missing[first:], encoded, views):
                    pending.append(pool.submit(self._write, name, one, view.masks))
                while len(pending) > 2 * IMAGES_AT_ONCE:  # bounds the number of views in memory
                    pending.pop(0).result()
                progress.log(first + len(views))
            for future in pending:
                future.result()
        self.sa2va.train(training)

    def _write(self, name: str, encoded: EncodedViews, masks: Tensor) -> None:
        if not self.store.holds(name):  # another run may fill the same store
            index, _ = self.share.views[name]
            self.store.write(name, encoded, masks, self.dataset.records[index].image)


@torch.no_grad()
def encode_each(sa2va: Sa2VA, views: Sequence[View]) -> list[EncodedViews]:
    """Features of each image, on the CPU."""
    tiles, squares = torch.cat([view.tiles for view in views]), torch.stack([view.sam_image for view in views])
    encoded = sa2va.encode_views(tiles.to(sa2va.device), squares.to(sa2va.device)).each(Tensor.cpu)
    patches = encoded.patches.split([len(view.tiles) for view in views])
    levels = encoded.embedding.split(1), encoded.stride_8.split(1), encoded.stride_4.split(1)
    found = [EncodedViews(*of_image) for of_image in zip(patches, *levels)]
    if not sa2va.grounding.sees_view:
        return found
    return [replace(one, view=_pixels(view.sam_image)) for one, view in zip(found, views)]


def _pixels(square: Tensor) -> Tensor:
    """(3, side, side) float32, normalised -> (1, 3, side, side) uint8: a quarter of the bytes, lossless."""
    return torch.from_numpy(to_pixels(square)).permute(2, 0, 1).unsqueeze(0)


def _bytes(encoded: EncodedViews, masks: Tensor) -> int:
    mask_bytes = masks.numel() if masks.is_floating_point() else masks.numel() // 8
    return sum(tensor.nbytes for tensor in encoded.tensors().values()) + mask_bytes + 1024


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError if fewer than `needed` bytes are free in a folder; for one in memory, main memory counts, too."""
    free, where = float(shutil.disk_usage(folder).free), "on this disk"
    available = available_bytes()
    if folder.is_relative_to(MEMORY_FOLDER) and available is not None:
        free, where = min(free, available), "of main memory (/dev/shm)"
    if needed > free:
        raise UserError(
            f"{folder}: features take about {needed / GIB:.1f} GiB more, {free / GIB:.1f} GiB are free {where}. Free "
            "some, set features.folder to another disk, lower features.variants, set "
            "model.sa2va.trainable.high_res_convs=False (a fifth of the size), or features.store=None"
        )


class FillProgress:
    """Logs the progress of the fill, estimated from this process's part."""

    def __init__(self, views: int, processes: int) -> None:
        self.views = views
        self.processes = processes
        self.started = self.logged = time.perf_counter()

    def log(self, done: int) -> None:
        """Log a line every ten seconds."""
        now = time.perf_counter()
        if now - self.logged < PROGRESS_EVERY_S:
            return
        self.logged = now
        rate = done / (now - self.started)
        left = timedelta(seconds=round((self.views - done) / rate))
        all_done, all_views = done * self.processes, self.views * self.processes
        logger.info("features: about %d of %d, %.1f views/s, %s left", all_done, all_views, rate * self.processes, left)


def move_encoders(sa2va: Sa2VA, device: torch.device) -> None:
    """Move the frozen encoders, and release the GPU memory that this frees."""
    for module in sa2va.encoders().values():
        module.to(device)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def encoders_on_device(sa2va: Sa2VA) -> Iterator[None]:
    """Within the context, the encoders are on the model's device."""
    home = next(sa2va.vision_model.parameters()).device
    if home == sa2va.device:
        yield
        return
    move_encoders(sa2va, sa2va.device)
    try:
        yield
    finally:
        move_encoders(sa2va, home)
