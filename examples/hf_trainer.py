"""Train an exported model on with transformers' Trainer, and write it as an exported folder again.

    python examples/hf_trainer.py FOLDER --data data/NAME --out DIR [--epochs 3] [--lr 2e-5] [--batch 1]
    torchrun --nproc-per-node 4 examples/hf_trainer.py FOLDER --data data/NAME --out DIR

Images, augmentation, questions, their order, losses, what trains and the learning rate are those of
`bash tools/dist.sh train`; mmengine, xtuner and deepspeed are not needed. What is missing here: validation and
best.pth, going on after a stop, ZeRO, stored features. DIR/trainer_state.json holds the losses.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments

from vesselseg.cli import run_tool
from vesselseg.data.augment import Augment
from vesselseg.data.batch import Example
from vesselseg.data.collate import collate
from vesselseg.data.vessel_dataset import VesselDataset
from vesselseg.engine.plan import TrainPlan
from vesselseg.engine.sampler import StreamSampler
from vesselseg.engine.settings import Schedule
from vesselseg.errors import UserError
from vesselseg.inference.processor import processor_for
from vesselseg.models.lora import Lora, Trainable, attach_lora, set_trainable
from vesselseg.output_folder import check_output, temporary_folder, whole_folder

MARKER = "config.json"
MAX_LENGTH = 2048  # tokens of a conversation


def main() -> int:
    """Load, train, write."""
    args = parse_arguments()
    check_output(args.out, args.force, MARKER)
    check_folder(args.folder)
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    model = load(args.folder, args.lora_rank, args.seed)
    data = dataset(args.data, model.config, tokenizer, args.seed)
    with temporary_folder(args.out, "training") as scratch:
        trainer = PlannedTrainer(model, tokenizer, data, args, scratch)
        trainer.train()
        if trainer.is_world_process_zero():
            with whole_folder(args.out, args.force, MARKER) as building:
                trainer.save_model(str(building))
                trainer.state.save_to_json(str(building / "trainer_state.json"))
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
    parser.add_argument("--force", action="store_true", help="replace an earlier DIR")
    return parser.parse_args()


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


def load(folder: Path, rank: int, seed: int) -> Any:
    """The model with adapters, frozen but for what the configs train; bf16 on a GPU, what trains in float32."""
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


class PlannedTrainer(Trainer):
    """Trainer with the main path's order of images, optimizer and learning rate."""

    def __init__(
        self, model: Any, tokenizer: Any, data: VesselDataset, args: argparse.Namespace, scratch: Path
    ) -> None:
        settings = {"epochs": args.epochs, "lr": args.lr, "max_iters": args.max_iters}
        schedule = Schedule(**settings, micro_batch=args.batch, accumulation=args.accumulation)
        if schedule.problems():
            raise UserError("\n  ".join(schedule.problems()))
        on_gpu = torch.cuda.is_available()
        told = TrainingArguments(
            output_dir=str(scratch),
            per_device_train_batch_size=args.batch,
            gradient_accumulation_steps=args.accumulation,
            max_grad_norm=schedule.clip,
            bf16=on_gpu,
            gradient_checkpointing=on_gpu,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            seed=args.seed,
        )
        told._n_gpu = min(1, told.n_gpu)  # one GPU per process: torch's DataParallel cannot cut these batches
        self.plan = TrainPlan(len(data), told.world_size, schedule)
        self.batches = StreamSampler(self.plan, told.process_index, args.seed)
        told.max_steps = self.plan.optimizer_steps
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=on_gpu
        )
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.plan.learning_rate(step) / schedule.lr)
        super().__init__(model, told, inputs, data, processing_class=tokenizer, optimizers=(optimizer, rate))

    def get_train_dataloader(self) -> DataLoader:
        """Each process's share of the images, in the order of the plan."""
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=inputs, num_workers=2)


if __name__ == "__main__":
    run_tool(main)
