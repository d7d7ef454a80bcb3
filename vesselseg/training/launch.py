"""From a checked config to a finished run, in one process of several."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.runner import FlexibleRunner
from mmengine.visualization import TensorboardVisBackend, Visualizer
from torch.utils.data import DataLoader

from vesselseg.config.load import config_text, expand
from vesselseg.config.settings import Loader, Schedule, read_section
from vesselseg.dataset.collate import collate
from vesselseg.dataset.manifest import image_digests
from vesselseg.dataset.vessel_dataset import VesselDataset
from vesselseg.errors import UserError
from vesselseg.inference.processor import Processor
from vesselseg.models.checkpoints.hub import hub_name
from vesselseg.registry import build
from vesselseg.training import console
from vesselseg.training.checkpoint import RunIdentity, RunState, Sizes, process_rank, read_run_state, weights_file
from vesselseg.training.feature_filling import FeatureHook
from vesselseg.training.loop import LazyDataLoader, VesselTrainLoop
from vesselseg.training.memory import out_of_memory_message
from vesselseg.training.memory_plan.check import available_memory, check_memory, min_over_ranks
from vesselseg.training.periodic_hooks import CheckpointFacts, CheckpointHook, ValidationHook
from vesselseg.training.plan import TrainPlan
from vesselseg.training.profile import ProfileHook
from vesselseg.training.run_log import LogHook, RunLog
from vesselseg.training.sampler import StreamSampler
from vesselseg.training.start_report import Loaded, StartReportHook
from vesselseg.training.strategy import VesselStrategy
from vesselseg.training.validation import validation_records
from vesselseg.training.work_dir import AUTO, claim, resume_folder

logger = logging.getLogger(__name__)
T = TypeVar("T")
CONFIG_FILE = "config.py"
# Parts of the messages of gloo, NCCL and torch's store.
LOST_PROCESS_MESSAGES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
    "Broken pipe",
    "Timed out waiting",
)


class LostProcessError(UserError):
    """Another process of the job has ended; its own message, or the launcher's, says why."""


class VesselRunner(FlexibleRunner):
    """FlexibleRunner without its environment report and without its copy of the config."""

    def dump_config(self) -> None:
        """Do nothing: `train` writes the config."""

    def _log_env(self) -> None:
        """Do nothing: every checkpoint contains the versions."""


def train(
    config: Config,
    work_dir: Path,
    resume: str | None = None,
    force: bool = False,
    skip_plan: bool = False,
    profile: int | None = None,
) -> None:
    """Train; called by every process of the job.

    resume: None, `auto`, or a path (see `resume_folder`). force: move an earlier run's results aside, and train even if
    the memory plan says that the run cannot fit. skip_plan: do not plan memory. profile: number of iterations to
    profile (see `ProfileHook`). Raises UserError and its subclasses for problems that the user can correct.
    """
    with readable_errors(config):
        run_training(config, Path(work_dir), resume, force, skip_plan, profile)


@contextlib.contextmanager
def readable_errors(config: Config) -> Iterator[None]:
    """Turn torch's errors into messages for the user; destroys the process group."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(out_of_memory_message(config, error)) from error
    except (torch.distributed.DistError, RuntimeError) as error:
        if not any(sign in str(error) for sign in LOST_PROCESS_MESSAGES):
            raise
        raise LostProcessError("another process of this job ended; continue the run with --resume auto") from error
    finally:
        # NCCL warns about a group that is not destroyed; gloo does not need it, and torch 2.6 sometimes hangs in it.
        if torch.distributed.is_initialized() and torch.distributed.get_backend() != "gloo":
            torch.distributed.destroy_process_group()


def run_training(
    config: Config,
    work_dir: Path,
    resume: str | None = None,
    force: bool = False,
    skip_plan: bool = False,
    profile: int | None = None,
) -> None:
    """The run itself; torch's errors are not translated."""
    config = start_from_folder(config)
    parts = expand(config)
    strategy = make_strategy(parts["strategy"], config, work_dir)
    rank = strategy.rank
    console.set_up(rank)
    if not skip_plan:
        available = min_over_ranks(available_memory(strategy.device, strategy.world_size))
        with torch.random.fork_rng(devices=[]):  # the plan draws random weights on the first process only
            _on_first_process(rank, lambda: check_memory(config, strategy.world_size, available, force))
    resume_from = _on_first_process(rank, lambda: _claim(work_dir, resume, force))
    dataset = build(parts["train_dataset"])
    identity = RunIdentity(len(dataset), config["seed"], dataset.fingerprint)
    if rank == 0:
        console.log_to_file(work_dir / "train.log")
        (work_dir / CONFIG_FILE).write_text(config_text(config), encoding="utf-8")
    state, plan = _state_and_plan(resume_from, identity, strategy, read_section(config, "schedule"))
    if resume == AUTO and resume_from is None:
        logger.info("--resume auto: no complete checkpoint in %s, starting from the beginning", work_dir)
    strategy.load_from = config["load_from"] if resume_from is None else str(weights_file(resume_from))
    log = RunLog(work_dir / "log.jsonl", active=rank == 0)
    if resume_from is not None:
        log.cut_after(state.progress.iteration)
        log.write("event", event="resumed", iter=state.progress.iteration, folder=str(resume_from))
    sampler = StreamSampler(plan, rank, config["seed"], state.progress.iteration)
    profiling = [] if profile is None else [ProfileHook(profile, plan, work_dir / "profile")]
    runner = VesselRunner(
        model=parts["model"],
        work_dir=str(work_dir),
        strategy=strategy,
        train_dataloader=_loader(dataset, sampler, read_section(config, "loader")),
        train_cfg={"type": VesselTrainLoop, "plan": plan, "state": state, "resume_from": resume_from},
        optim_wrapper={key: config["schedule"][key] for key in ("lr", "betas", "weight_decay")},
        default_hooks=dict.fromkeys(
            ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
        ),
        custom_hooks=[*_hooks(config, plan, dataset, log, identity, strategy.load_from), *profiling],
        visualizer=_visualizer(config, work_dir, strategy.experiment_name),
        randomness={"seed": config["seed"]},
        launcher="pytorch",
    )
    runner.train()


def start_from_folder(config: Config) -> Config:
    """Where `load_from` names a whole model, exported or published, use it as the base.

    Checkpoints then refer to it and hold the trained weights only.
    """
    path = config["load_from"]
    if path is None or not (Path(path).is_dir() or hub_name(path)):
        return config
    values = copy.deepcopy(config.to_dict())
    values["model"]["sa2va"]["base"] = str(path)
    values["load_from"] = None
    return Config(values, filename=config.filename)


def _state_and_plan(
    resume_from: Path | None, identity: RunIdentity, strategy: VesselStrategy, schedule: Schedule
) -> tuple[RunState, TrainPlan]:
    """State and plan of the run. A run that is resumed with other batch sizes continues at the same image."""
    sizes = Sizes(strategy.world_size, schedule.micro_batch, schedule.accumulation)
    state = RunState(sizes=sizes) if resume_from is None else read_run_state(resume_from, identity)
    earlier = state.sizes
    changed = state.change_sizes(sizes)
    plan = TrainPlan(identity.images, strategy.world_size, schedule, state.offset)
    done = state.progress
    if resume_from is not None:
        logger.info("resuming %s at iteration %d", resume_from, done.iteration)
    if changed:
        logger.info(
            "%s now, %s before: continuing at image %d of %d, %d iterations and %d optimizer steps are left",
            *(sizes, earlier, state.images_seen, identity.images * schedule.epochs),
            *(plan.iterations - done.iteration, plan.optimizer_steps - done.optimizer_steps),
        )
    return state, plan


def make_strategy(values: dict[str, Any], config: Config, work_dir: Path) -> VesselStrategy:
    """The strategy of an expanded config; initialises the process group."""
    strategy = build(
        {
            **values,
            "precision": config["precision"],
            "work_dir": str(work_dir),
            "experiment_name": work_dir.name,
            "env_kwargs": {"launcher": "pytorch", "randomness": {"seed": config["seed"]}},
        }
    )
    return strategy


def _claim(work_dir: Path, resume: str | None, force: bool) -> Path | None:
    folder = resume_folder(work_dir, resume)
    moved = claim(work_dir, resuming=folder is not None, auto=resume == AUTO, force=force)
    if moved is not None:
        logger.info("the earlier run's results were moved to %s", moved)
    return folder


def _on_first_process(rank: int, decide: Callable[[], T]) -> T:
    """Run `decide` on the first process; return its result, or raise its error, on all of them."""
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome = [decide(), None]
        except (UserError, OSError) as error:
            outcome = [None, error]
    torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def _loader(dataset: VesselDataset, sampler: StreamSampler, settings: Loader) -> DataLoader:
    workers = settings.num_workers
    return LazyDataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=settings.prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        # Without it torch draws worker seeds from its global generator, whose state differs in a resumed run.
        generator=torch.Generator().manual_seed(0),
    )


def _hooks(
    config: Config,
    plan: TrainPlan,
    dataset: VesselDataset,
    log: RunLog,
    identity: RunIdentity,
    start: str | None,
) -> list[Any]:
    digests = image_digests(dataset.root, dataset.records if process_rank() == 0 else ())  # images are read once
    facts = CheckpointFacts(
        model_config=Config(config["model"]["sa2va"]).to_dict(),
        config=config_text(config),
        data_root=str(config["data_root"]),
        data_fingerprint=dataset.fingerprint,
        training_images=" ".join(digests.values()),
    )
    validation = read_section(config, "validation")
    records = [] if validation.interval is None else validation_records(dataset.root, validation)
    sa2va, images = config["model"]["sa2va"], {"training": len(dataset), "validation": len(records)}
    loaded = Loaded(sa2va["base"], sa2va["sam2"].get("checkpoint"), start, str(dataset.root), images)
    hooks = [StartReportHook(plan, loaded), LogHook(read_section(config, "logging").interval, log)]
    checkpoint = read_section(config, "checkpoint")
    if checkpoint.interval is not None:
        hooks.append(CheckpointHook(checkpoint, facts, identity))
    features = read_section(config, "features")
    if features.store is not None:
        hooks.append(FeatureHook(features, read_section(config, "loader"), dataset))
    if validation.interval is not None:
        processor = Processor(dataset.views, dataset.tokens, dataset.tokens_per_tile)
        hooks.append(ValidationHook(validation, Path(config["data_root"]), records, processor, facts, log))
    if checkpoint.interval is None and process_rank() == 0:
        kept = "only best.pth is kept, which cannot be resumed from"
        kept = kept if validation.interval is not None else "no trained weights are kept"
        logger.warning("checkpoint.interval=None: %s", kept)
    return [*hooks, *map(build, config["custom_hooks"])]


def _visualizer(config: Config, work_dir: Path, name: str) -> Visualizer:
    backends = []
    if read_section(config, "logging").tensorboard:
        backends = [{"type": TensorboardVisBackend, "save_dir": str(work_dir / "tensorboard")}]
    return Visualizer(name=name, vis_backends=backends, save_dir=str(work_dir))
