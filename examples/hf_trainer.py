"""Continue training an exported model with transformers' Trainer, and write it as an exported folder again.

    python examples/hf_trainer.py FOLDER --data data/NAME --out DIR [--epochs 3] [--lr 2e-5] [--resume]
    torchrun --nproc-per-node 4 examples/hf_trainer.py FOLDER --data data/NAME --out DIR

Images, augmentation, questions, their order, losses, trainable parameters and learning rate are those of
`bash tools/dist.sh train`; mmengine, xtuner and deepspeed are not needed. Not supported: validation and best.pth, ZeRO,
stored features, resuming with another number of processes. DIR/trainer_state.json contains the losses.

Every --save-steps optimizer steps, and on Ctrl-C or SIGTERM, the trainable weights and the states of optimizer,
learning rate and random generators are saved in DIR.checkpoints; the frozen weights stay in FOLDER. The same command
with --resume continues from there, with the images and losses of an uninterrupted run. DIR.checkpoints is removed when
DIR is written.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.dynamic_module_utils import HF_MODULES_CACHE, get_class_from_dynamic_module

from vesselseg.config.settings import Checkpoint, Schedule
from vesselseg.dataset.augment import Augment
from vesselseg.dataset.batch import Example
from vesselseg.dataset.collate import collate
from vesselseg.dataset.manifest import image_digests
from vesselseg.dataset.vessel_dataset import VesselDataset
from vesselseg.errors import UserError
from vesselseg.inference.model_files import weights_digest
from vesselseg.inference.processor import processor_for
from vesselseg.models.lora import Lora, Trainable, attach_lora, set_trainable, trainable_state
from vesselseg.output_folder import check_output, whole_folder
from vesselseg.run_tool import run_tool
from vesselseg.training.plan import TrainPlan
from vesselseg.training.sampler import StreamSampler

MARKER = "config.json"
MAX_LENGTH = 2048  # tokens of a conversation
SETTINGS = ("epochs", "lr", "batch", "accumulation", "max_iters", "lora_rank", "seed")  # must be equal to resume
UNFINISHED, TRAINED = "unfinished", "trained.safetensors"
ORIGIN = "origin.json"  # in a checkpoint: the run's settings, and digests of the other files


def main() -> int:
    """Load, train, write."""
    args = parse_arguments()
    check_output(args.out, args.force, MARKER)
    checkpoints = args.out.absolute().with_name(f"{args.out.absolute().name}.checkpoints")
    check_checkpoints(checkpoints, args.resume, args.force)
    check_folder(args.folder)
    tokenizer = AutoTokenizer.from_pretrained(args.folder, trust_remote_code=True)
    model = load(args.folder, args.lora_rank, args.seed)
    data = dataset(args.data, model.config, tokenizer, args.seed)
    trainer = PlannedTrainer(model, tokenizer, data, args, checkpoints)
    if trainer.is_world_process_zero():  # the one that writes; eval.py warns about scoring on training images
        model.config.add_training_images(" ".join(image_digests(args.data, data.records).values()))
    trainer.train(resume_from_checkpoint=trainer.claim(args.resume))
    if trainer.state.global_step < trainer.state.max_steps:
        if trainer.is_world_process_zero():
            state = trainer.state
            print(f"stopped after step {state.global_step} of {state.max_steps}; continue with --resume")
        return 128 + trainer.stop.received
    if trainer.is_world_process_zero():
        with whole_folder(args.out, args.force, MARKER) as building:
            trainer.save_model(str(building))
            trainer.state.log_history.pop()  # Trainer's summary covers only the part after resuming
            trainer.state.save_to_json(str(building / "trainer_state.json"))
        shutil.rmtree(checkpoints)
        print(f"{args.out}: written; score it with vesselseg eval {args.out} --data {args.data}")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Command line -> settings."""
    defaults = Schedule()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="exported folder of vesselseg convert")
    parser.add_argument("--data", type=Path, required=True, help="dataset folder of vesselseg prepare")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--lr", type=float, default=defaults.lr, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=defaults.micro_batch, help="images per process and iteration")
    parser.add_argument("--accumulation", type=int, default=defaults.accumulation, help="iterations per optimizer step")
    parser.add_argument("--max-iters", type=int, help="number of iterations to stop after")
    parser.add_argument("--lora-rank", type=int, default=Lora.r, help="of the language model's adapters")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-steps", type=positive, default=100, help="optimizer steps between checkpoints")
    parser.add_argument("--keep", type=positive, default=Checkpoint.keep, help="checkpoints to keep (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint of DIR")
    parser.add_argument("--force", action="store_true", help="replace an earlier DIR; without --resume, start over")
    return parser.parse_args()


def check_checkpoints(folder: Path, resume: bool, force: bool) -> None:
    """Raise UserError if there is nothing to resume, or a stopped run would be overwritten."""
    checkpoints = checkpoints_in(folder)
    if resume and not checkpoints:
        raise UserError(f"{folder} has no checkpoint, so there is nothing to resume; start without --resume")
    if checkpoints and not (resume or force):
        raise UserError(
            f"{folder} has a stopped run ({checkpoints[-1].name}): continue it (--resume) or discard it (--force)"
        )


def check_folder(folder: Path) -> None:
    """Raise UserError if the model code in a folder cannot train."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no exported model: its config.json cannot be read ({error})") from None
    if kind != ["VesselSegModel"] or not (folder / "total.py").exists():
        raise UserError(
            f"{folder} contains {kind}, whose code cannot train; export a checkpoint with this version: "
            "vesselseg convert CHECKPOINT --save-path FOLDER"
        )


def cache_code(folder: Path) -> None:
    """Let transformers copy the folder's code to its module cache, one process at a time.

    It copies in place, so of several processes one could import a file that another one is writing.
    """
    cache = Path(HF_MODULES_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "vesselseg.lock").open("w") as lock:
        with suppress(OSError):  # some network file systems do not support locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        for reference in json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"].values():
            get_class_from_dynamic_module(reference, str(folder))


def load(folder: Path, rank: int, seed: int) -> Any:
    """The model with adapters; trainable as in the configs. bf16 on a GPU, with float32 trainable parameters."""
    cache_code(folder)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model: Any = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
    torch.manual_seed(seed)  # initialises the adapters
    attach_lora(model.sa2va, Lora(r=rank, alpha=2 * rank, dropout=0.0))
    set_trainable(model.sa2va, Trainable())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def dataset(data: Path, config: Any, tokenizer: Any, seed: int) -> VesselDataset:
    """The training split in the views that the model reads."""
    processor = processor_for(config, tokenizer, max_length=MAX_LENGTH)
    parts = {"views": processor.views, "tokens": processor.tokens, "tokens_per_tile": processor.tokens_per_tile}
    return VesselDataset(data, "train", **parts, augment=Augment(), seed=seed)


def inputs(examples: Sequence[Example]) -> dict[str, Any]:
    """A batch as keyword arguments of forward. The images come first: Trainer takes its length as the batch size."""
    batch = vars(collate(examples))
    return {"sam_images": batch["sam_images"], **batch}


def checkpoints_in(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    return sorted((path for path in steps if steps[path].isdecimal()), key=lambda path: int(steps[path]))


def newest_intact(folder: Path, settings: dict[str, Any]) -> Path:
    """The newest undamaged checkpoint; raises UserError if there is none, or if its settings differ."""
    for checkpoint in reversed(checkpoints_in(folder)):
        try:
            origin = json.loads((checkpoint / ORIGIN).read_text(encoding="utf-8"))
            wrong = [name for name, digest in origin["files"].items() if weights_digest(checkpoint / name) != digest]
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            wrong = [Path(getattr(error, "filename", ORIGIN)).name]
        if not wrong:
            break
        print(f"{checkpoint} is damaged ({', '.join(wrong)}); using the one before")
    else:
        raise UserError(f"{folder}: all checkpoints are damaged; start over with --force instead of --resume")
    saved = origin["settings"]
    different = [
        f"{name}: {saved.get(name)} there, {now} now" for name, now in settings.items() if saved.get(name) != now
    ]
    if different:
        choice = "repeat the stopped run's command with --resume added, or start over with --force instead"
        raise UserError("\n  ".join([f"{checkpoint} was written with other settings; {choice}", *different]))
    print(f"continuing from {checkpoint}")
    return checkpoint


class StopOnSignal(TrainerCallback):
    """The first Ctrl-C or SIGTERM ends training after the current step with a checkpoint, a second one immediately."""

    own = 0  # number of the signal that this process received
    received = 0  # by any process; a separate field, because `own` may change while the processes exchange it

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Install the handlers, until training ends or a signal arrives."""
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self.before:
            signal.signal(number, self._handle)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Restore the previous handlers."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: Any) -> None:
        self.own = number
        self.on_train_end()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop all processes after the same step."""
        self.received = int(gather(torch.tensor([self.own], device=args.device)).max())
        if self.received:
            control.should_save = control.should_training_stop = True


class ResumableTrainer(Trainer):
    """Trainer whose checkpoints hold the trainable weights (its own would merge the adapters) and appear atomically."""

    settings: dict[str, Any]  # must be equal for a resumed run to match an uninterrupted one
    keep: int  # checkpoints

    def claim(self, resume: bool) -> str | None:
        """Lock the checkpoint folder for this run; returns the checkpoint to resume from. Called by every process."""
        folder, chosen = Path(str(self.args.output_dir)), None
        if self.is_world_process_zero():
            self.lock = (folder / "lock").open("w")  # POSIX: released with this process, not with its loaders
            try:
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(f"{folder}: another run is writing to it; wait, or choose another --out") from None
            except OSError:
                pass  # some network file systems do not support locks
            checkpoints = checkpoints_in(folder)
            chosen = newest_intact(folder, self.settings) if resume else None
            # Later checkpoints are damaged; with --force all are obsolete.
            obsolete = checkpoints[checkpoints.index(chosen) + 1 :] if chosen else checkpoints
            for path in (folder / UNFINISHED, *obsolete):
                shutil.rmtree(path, ignore_errors=True)
        return broadcast_object_list([chosen and str(chosen)])[0]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write an exported folder; for a checkpoint only the trainable weights."""
        if not _internal_call:
            super().save_model(output_dir)
        elif self.args.should_save:
            Path(str(output_dir)).mkdir(parents=True, exist_ok=True)
            save_file(trainable_state(self.model), Path(str(output_dir)) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / TRAINED), strict=False)  # rest: FOLDER

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(super()._get_output_dir(trial)) / UNFINISHED)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as Trainer does, then rename, so that a run killed while saving leaves no partial checkpoint."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process has written its random state
        if self.args.should_save:
            written = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            files = {path.name: weights_digest(path) for path in written.iterdir()}
            (written / ORIGIN).write_text(json.dumps({"settings": self.settings, "files": files}), encoding="utf-8")
            written.rename(Path(str(self.args.output_dir)) / written.name)
            for obsolete in checkpoints_in(Path(str(self.args.output_dir)))[: -self.keep]:
                shutil.rmtree(obsolete)

    def _load_callback_state(self) -> None:
        """Called when a checkpoint's state was read, which must not decide --save-steps of this run."""
        super()._load_callback_state()
        self.state.compute_steps(self.args, self.args.max_steps)


class PlannedTrainer(ResumableTrainer):
    """Trainer with the image order, optimizer and learning rate of `bash tools/dist.sh train`."""

    def __init__(self, model: Any, tokenizer: Any, data: VesselDataset, args: Any, checkpoints: Path) -> None:
        length = {"epochs": args.epochs, "max_iters": args.max_iters, "accumulation": args.accumulation}
        schedule = Schedule(**length, lr=args.lr, micro_batch=args.batch)
        if schedule.problems():
            raise UserError("\n  ".join(schedule.problems()))
        on_gpu = torch.cuda.is_available()
        training_args = TrainingArguments(
            output_dir=str(checkpoints),
            per_device_train_batch_size=args.batch,
            gradient_accumulation_steps=args.accumulation,
            max_grad_norm=schedule.clip,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            gradient_checkpointing=on_gpu,
            logging_steps=1,
            save_steps=args.save_steps,
            report_to=[],
            seed=args.seed,
        )
        # One GPU per process: torch's DataParallel cannot split these batches.
        training_args._n_gpu = min(1, training_args.n_gpu)
        self.plan = TrainPlan(len(data), training_args.world_size, schedule)
        self.batches = StreamSampler(self.plan, training_args.process_index, args.seed)
        training_args.max_steps = self.plan.optimizer_steps
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        decay = schedule.weight_decay
        optimizer = torch.optim.AdamW(trained, schedule.lr, schedule.betas, weight_decay=decay, fused=on_gpu)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.plan.learning_rate(step) / schedule.lr)
        super().__init__(model, training_args, inputs, data, processing_class=tokenizer, optimizers=(optimizer, rate))
        self.keep = args.keep
        self.stop = StopOnSignal()
        self.add_callback(self.stop)
        self.settings = {name: vars(args)[name] for name in SETTINGS} | {"processes": training_args.world_size}
        self.settings |= {"data": data.fingerprint, "weights of FOLDER": weights_digest(args.folder)}

    def get_train_dataloader(self) -> DataLoader:
        """Each process's share of the images, in the order of the plan."""
        # Workers in their own session do not receive Ctrl-C, which would end them before the last step.
        workers = {"num_workers": 2, "worker_init_fn": lambda _: os.setsid()}
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=inputs, **workers)


def positive(text: str) -> int:
    """A whole number from 1, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


if __name__ == "__main__":
    run_tool(main)
