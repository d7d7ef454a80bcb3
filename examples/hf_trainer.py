"""Train an exported model on with transformers' Trainer, and write it as an exported folder again.

    python examples/hf_trainer.py FOLDER --data data/NAME --out DIR [--epochs 3] [--lr 2e-5] [--resume]
    torchrun --nproc-per-node 4 examples/hf_trainer.py FOLDER --data data/NAME --out DIR

Images, augmentation, questions, their order, losses, what trains and the learning rate are those of
`bash tools/dist.sh train`; mmengine, xtuner and deepspeed are not needed. What is missing here: validation and
best.pth, ZeRO, stored features, going on with another number of processes. DIR/trainer_state.json holds the losses.

DIR.checkpoints gets, every --save-steps optimizer steps and at Ctrl-C or SIGTERM, what trains and the states of
optimizer, learning rate and random numbers; the frozen weights stay in FOLDER. The same command with --resume goes on
from there, with images and losses of a run that never stopped. DIR.checkpoints is removed when DIR is written.
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
SETTINGS = ("epochs", "lr", "batch", "accumulation", "max_iters", "lora_rank", "seed")  # that a run goes on with
UNFINISHED, TRAINED = "unfinished", "trained.safetensors"
ORIGIN = "origin.json"  # in a checkpoint: the run's settings, and digests of the files beside it


def main() -> int:
    """Load, train, write."""
    args = parse_arguments()
    check_output(args.out, args.force, MARKER)
    checkpoints = args.out.absolute().with_name(f"{args.out.absolute().name}.checkpoints")
    check_checkpoints(checkpoints, args.resume, args.force)
    check_folder(args.folder)
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    model = load(args.folder, args.lora_rank, args.seed)
    data = dataset(args.data, model.config, tokenizer, args.seed)
    trainer = PlannedTrainer(model, tokenizer, data, args, checkpoints)
    if trainer.is_world_process_zero():  # which writes; eval.py warns where a model is scored on what it has seen
        model.config.add_training_images(" ".join(image_digests(args.data, data.records).values()))
    trainer.train(resume_from_checkpoint=trainer.claim(args.resume))
    if trainer.state.global_step < trainer.state.max_steps:
        if trainer.is_world_process_zero():
            print(f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}; go on with --resume")
        return 128 + trainer.stop.received
    if trainer.is_world_process_zero():
        with whole_folder(args.out, args.force, MARKER) as building:
            trainer.save_model(str(building))
            trainer.state.log_history.pop()  # Trainer's closing row takes a resumed run's part for the whole
            trainer.state.save_to_json(str(building / "trainer_state.json"))
        shutil.rmtree(checkpoints)
        print(f"{args.out}: written; score it with python tools/eval.py {args.out} --data {args.data}")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Command line -> settings."""
    usual = Schedule()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="exported folder of tools/convert_to_hf.py")
    parser.add_argument("--data", type=Path, required=True, help="dataset folder of tools/prepare_data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--epochs", type=int, default=usual.epochs)
    parser.add_argument("--lr", type=float, default=usual.lr, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=usual.micro_batch, help="images per process and iteration")
    parser.add_argument("--accumulation", type=int, default=usual.accumulation, help="iterations per optimizer step")
    parser.add_argument("--max-iters", type=int, help="stop after so many iterations")
    parser.add_argument("--lora-rank", type=int, default=Lora.r, help="of the language model's adapters")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-steps", type=positive, default=100, help="optimizer steps between checkpoints")
    parser.add_argument("--keep", type=positive, default=Checkpoint.keep, help="checkpoints that stay (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of DIR")
    parser.add_argument("--force", action="store_true", help="replace an earlier DIR; without --resume, start anew")
    return parser.parse_args()


def check_checkpoints(folder: Path, resume: bool, force: bool) -> None:
    """Raise UserError where there is nothing to resume, or a stopped run's checkpoints are in the way."""
    found = checkpoints_in(folder)
    if resume and not found:
        raise UserError(f"{folder} holds no checkpoint, so there is nothing to resume; start without --resume")
    if found and not (resume or force):
        raise UserError(f"{folder} holds a stopped run ({found[-1].name}): go on (--resume) or throw it away (--force)")


def check_folder(folder: Path) -> None:
    """Raise UserError where a folder's own code has no training forward."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no exported model, its config.json cannot be read ({error})") from None
    if kind != ["VesselSegModel"] or not (folder / "total.py").exists():
        raise UserError(
            f"{folder} holds {kind}, whose code does not train; export a checkpoint with this version: "
            "python tools/convert_to_hf.py CHECKPOINT --save-path FOLDER"
        )


def take_code(folder: Path) -> None:
    """Let transformers copy the folder's code to where it imports it from, one process after the other.

    It copies in place: of several that start at once, one would import a file that another one is writing.
    """
    cache = Path(HF_MODULES_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "vesselseg.lock").open("w") as lock:
        with suppress(OSError):  # some network file systems lock nothing
            fcntl.flock(lock, fcntl.LOCK_EX)
        for reference in json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"].values():
            get_class_from_dynamic_module(reference, str(folder))


def load(folder: Path, rank: int, seed: int) -> Any:
    """The model with adapters, frozen but for what the configs train; bf16 on a GPU, what trains in float32."""
    take_code(folder)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model: Any = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
    torch.manual_seed(seed)  # of the adapters
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
    """A batch as keywords of the model's forward. Trainer takes the length of the first one for the images' number."""
    batch = vars(collate(examples))
    return {"sam_images": batch["sam_images"], **batch}


def checkpoints_in(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    return sorted((path for path in steps if steps[path].isdecimal()), key=lambda path: int(steps[path]))


def newest_whole(folder: Path, settings: dict[str, Any]) -> Path:
    """The newest checkpoint that is as it was written; raises UserError for none, or one of other settings."""
    for checkpoint in reversed(checkpoints_in(folder)):
        try:
            origin = json.loads((checkpoint / ORIGIN).read_text(encoding="utf-8"))
            wrong = [name for name, digest in origin["files"].items() if weights_digest(checkpoint / name) != digest]
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            wrong = [Path(getattr(error, "filename", ORIGIN)).name]
        if not wrong:
            break
        print(f"{checkpoint} is damaged ({', '.join(wrong)}); taking the one before")
    else:
        raise UserError(f"{folder}: no checkpoint is whole; start anew with --force instead of --resume")
    saved = origin["settings"]
    other = [f"{name}: {saved.get(name)} there, {now} now" for name, now in settings.items() if saved.get(name) != now]
    if other:
        choice = "repeat the stopped run's command with --resume added, or start anew with --force in its place"
        raise UserError("\n  ".join([f"{checkpoint} was written with other settings; {choice}", *other]))
    print(f"going on from {checkpoint}")
    return checkpoint


class StopOnSignal(TrainerCallback):
    """The first Ctrl-C or SIGTERM ends training after the present step, with a checkpoint; a second one at once."""

    noted = 0  # the number of the signal that this process got
    received = 0  # that any process got; apart from the other, which changes while processes tell each other

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Listen, until training ends or a signal comes."""
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self.before:
            signal.signal(number, self._note)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Listen no longer."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.noted = number
        self.on_train_end()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All processes stop after the same step."""
        self.received = int(gather(torch.tensor([self.noted], device=args.device)).max())
        if self.received:
            control.should_save = control.should_training_stop = True


class ResumableTrainer(Trainer):
    """Trainer whose checkpoints hold what trains (its own would merge the adapters) and appear whole or not at all."""

    settings: dict[str, Any]  # that must be the same for a stopped run to go on as if nothing had happened

    def claim(self, resume: bool) -> str | None:
        """Take the folder of checkpoints for this run; returns the one to go on from. Every process calls it."""
        folder, chosen = Path(str(self.args.output_dir)), None
        if self.is_world_process_zero():
            self.lock = (folder / "lock").open("w")  # a POSIX lock: it dies with this process, not with its loaders
            try:
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(f"{folder}: another run is writing to it; wait, or choose another --out") from None
            except OSError:
                pass  # some network file systems lock nothing
            found = checkpoints_in(folder)
            chosen = newest_whole(folder, self.settings) if resume else None
            damaged = found[found.index(chosen) + 1 :] if chosen else found  # or of before --force
            for useless in (folder / UNFINISHED, *damaged):
                shutil.rmtree(useless, ignore_errors=True)
        return broadcast_object_list([chosen and str(chosen)])[0]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """An exported folder; in a checkpoint only what trains."""
        if not _internal_call:
            super().save_model(output_dir)
        elif self.args.should_save:
            Path(str(output_dir)).mkdir(parents=True, exist_ok=True)
            save_file(trainable_state(self.model), Path(str(output_dir)) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / TRAINED), strict=False)  # rest: FOLDER's

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(super()._get_output_dir(trial)) / UNFINISHED)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer's, then renamed: a run that is killed while it writes leaves no half checkpoint to go on from."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process has written its random state
        if self.args.should_save:
            written = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            files = {path.name: weights_digest(path) for path in written.iterdir()}
            (written / ORIGIN).write_text(json.dumps({"settings": self.settings, "files": files}), encoding="utf-8")
            written.rename(Path(str(self.args.output_dir)) / written.name)
            self._rotate_checkpoints(output_dir=self.args.output_dir)

    def compare_trainer_and_checkpoint_args(self, training_args: Any, trainer_state: Any) -> None:
        """A checkpoint brings the stopped run's --save-steps along; this run's counts. The rest is compared before."""
        trainer_state.compute_steps(training_args, training_args.max_steps)


class PlannedTrainer(ResumableTrainer):
    """Trainer with the main path's order of images, optimizer and learning rate."""

    def __init__(self, model: Any, tokenizer: Any, data: VesselDataset, args: Any, checkpoints: Path) -> None:
        length = {"epochs": args.epochs, "max_iters": args.max_iters, "accumulation": args.accumulation}
        schedule = Schedule(**length, lr=args.lr, micro_batch=args.batch)
        if schedule.problems():
            raise UserError("\n  ".join(schedule.problems()))
        on_gpu = torch.cuda.is_available()
        told = TrainingArguments(
            output_dir=str(checkpoints),
            per_device_train_batch_size=args.batch,
            gradient_accumulation_steps=args.accumulation,
            max_grad_norm=schedule.clip,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            gradient_checkpointing=on_gpu,
            logging_steps=1,
            save_steps=args.save_steps,
            save_total_limit=args.keep,
            report_to=[],
            seed=args.seed,
        )
        told._n_gpu = min(1, told.n_gpu)  # one GPU per process: torch's DataParallel cannot cut these batches
        self.plan = TrainPlan(len(data), told.world_size, schedule)
        self.batches = StreamSampler(self.plan, told.process_index, args.seed)
        told.max_steps = self.plan.optimizer_steps
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        decay = schedule.weight_decay
        optimizer = torch.optim.AdamW(trained, schedule.lr, schedule.betas, weight_decay=decay, fused=on_gpu)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.plan.learning_rate(step) / schedule.lr)
        super().__init__(model, told, inputs, data, processing_class=tokenizer, optimizers=(optimizer, rate))
        self.stop = StopOnSignal()
        self.add_callback(self.stop)
        self.settings = {name: vars(args)[name] for name in SETTINGS} | {"processes": told.world_size}
        self.settings |= {"data": data.fingerprint, "weights of FOLDER": weights_digest(args.folder)}

    def get_train_dataloader(self) -> DataLoader:
        """Each process's share of the images, in the order of the plan."""
        apart = {"num_workers": 2, "worker_init_fn": lambda _: os.setsid()}  # what stops all ends no loader early
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=inputs, **apart)


def positive(text: str) -> int:
    """A whole number from 1, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


if __name__ == "__main__":
    run_tool(main)
