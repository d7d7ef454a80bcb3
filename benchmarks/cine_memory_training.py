"""Train the memory of a small SAM2 on drawn cine runs, to compare both modes of `segment_cine`.

usage: python benchmarks/cine_memory_training.py work_dirs/arcade/hf --out work_dirs/cine_model

A model trained on single images without pretrained SAM2 weights has a random memory. First the mask decoder learns
single drawn frames, prompted by the model's own vectors, to adapt it to such images; then it is frozen, and memory
attention, memory encoder and pointers learn to carry a keyframe's mask through clips. Frames are encoded once. Writes a
model folder and training.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vesselseg.dataset.prompts import question_for
from vesselseg.inference.load import load_predictor
from vesselseg.inference.predictor import Predictor
from vesselseg.losses.masks import area_average, bce_per_object, dice_per_object
from vesselseg.machine import available_cores
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.checkpoints.write_published import write_published_folder
from vesselseg.models.sam2_grounding import ImageFeatures, SAM2Grounding
from vesselseg.models.sam2_memory import MaskMemory
from vesselseg.synthetic.cine import Cine, draw_cine

PHRASE = "blood vessel"
QUESTION_BATCH = 16


@dataclass
class Pool:
    """All frames of all runs, encoded."""

    embedding: Tensor  # (runs * frames, channels, h, w), stride 16
    stride_8: Tensor  # (runs * frames, channels, h, w)
    stride_4: Tensor  # (runs * frames, channels, h, w)
    prompts: Tensor  # (runs * frames, 256)
    truth: Tensor  # (runs, frames, h, w) at stride 4, 0 to 1

    def frames(self, runs: Tensor, numbers: Tensor) -> tuple[ImageFeatures, Tensor, Tensor]:
        """Features, prompts and truth of one frame of each run; runs, numbers: (batch,) indices."""
        places = runs * self.truth.shape[1] + numbers
        levels = (level[places].float() for level in (self.embedding, self.stride_8, self.stride_4))
        return ImageFeatures(*levels), self.prompts[places].float(), self.truth[runs, numbers]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, encode, train the decoder, train the memory, write. argv: of the command line, the default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="exported folder of a small model")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--runs", type=int, default=96, help="drawn runs (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=24, help="of each run (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="clips per step (default: %(default)s)")
    parser.add_argument("--clip", type=int, default=8, help="frames per clip (default: %(default)s)")
    parser.add_argument("--decoder-s", type=float, default=60, help="seconds for the decoder (default: %(default)s)")
    parser.add_argument("--memory-s", type=float, default=180, help="seconds for the memory (default: %(default)s)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    random.seed(0)
    torch.set_float32_matmul_precision("high")
    started = time.perf_counter()
    predictor = load_predictor(arguments.model, dtype=torch.float32)
    grounding = predictor.grounding
    pool = encode(predictor, draw(arguments.runs, arguments.frames, predictor.views.sam_size))
    print(f"{arguments.runs} runs drawn and encoded: {time.perf_counter() - started:.0f} s", flush=True)
    sam2 = grounding.sam2
    decoder = [p for name, p in sam2.sam_mask_decoder.named_parameters() if not name.startswith("conv_s")]
    learned = {
        "decoder": train(decoder, arguments.decoder_s, lambda: frames_loss(grounding, pool, arguments.batch * 2))
    }
    memory = [sam2.maskmem_tpos_enc, sam2.no_obj_ptr]
    for part in (sam2.memory_attention, sam2.memory_encoder, sam2.obj_ptr_proj):
        memory += part.parameters()
    clips = (arguments.batch, arguments.clip)
    learned["memory"] = train(memory, arguments.memory_s, lambda: clips_loss(grounding, pool, *clips))
    write(predictor, arguments.model, arguments.out, learned)


def draw(runs: int, frames: int, side: int) -> list[Cine]:
    """Runs for training. Their seeds start at 1000: benchmarks/cine.py evaluates on the lower ones."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(runs, available_cores()), mp_context=spawned) as workers:
        return list(workers.map(draw_cine, [frames] * runs, [side] * runs, range(1000, 1000 + runs)))


@torch.no_grad()
def encode(predictor: Predictor, runs: Sequence[Cine]) -> Pool:
    """Everything before the mask decoder, once per frame."""
    device = predictor.grounding.sam2.no_mem_embed.device
    levels: list[tuple[Tensor, ...]] = []
    for run in runs:
        frames = [Image.fromarray(frame).convert("RGB") for frame in run.frames]
        for start in range(0, len(frames), QUESTION_BATCH):
            some = frames[start : start + QUESTION_BATCH]
            inputs = predictor.build_inputs(some, [[question_for(PHRASE)]] * len(some))
            features = predictor.encode(inputs)
            prompts = predictor.prompts(inputs, features)
            levels.append((features.embedding, features.stride_8, features.stride_4, prompts))
    embedding, stride_8, stride_4, prompts = (torch.cat(level) for level in zip(*levels))
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    masks = torch.from_numpy(np.stack([run.masks for run in runs])).flatten(0, 1).float()
    side = predictor.views.sam_size // 4
    truth = torch.cat([area_average(some, side, side) for some in masks.split(64)])
    truth = truth.unflatten(0, (len(runs), -1)).to(device)
    return Pool(embedding.to(half), stride_8.to(half), stride_4.to(half), prompts, truth)


def frames_loss(grounding: SAM2Grounding, pool: Pool, batch: int) -> Tensor:
    """Mean loss of `batch` random frames, each segmented from its own prompt."""
    runs, frames = pool.truth.shape[:2]
    features, prompts, truth = pool.frames(_random(runs, batch, pool), _random(frames, batch, pool))
    return _loss(grounding.decode(features, prompts, torch.arange(batch, device=truth.device)), truth)


def clips_loss(grounding: SAM2Grounding, pool: Pool, batch: int, clip: int) -> Tensor:
    """Mean loss of the frames that follow a keyframe in `batch` random clips of `clip` frames.

    The first frame is a keyframe, in half of the steps the middle one too.
    """
    runs, frames = pool.truth.shape[:2]
    chosen, starts = _random(runs, batch, pool), _random(frames - clip + 1, batch, pool)
    keyframes = {0, clip // 2} if random.random() < 0.5 else {0}
    memory, losses = MaskMemory(grounding, frames), []
    for number in range(clip):
        features, prompts, truth = pool.frames(chosen, starts + number)
        logits = memory.step(features, prompts if number in keyframes else None)
        if number not in keyframes:
            losses.append(_loss(logits, truth))
    return torch.stack(losses).mean()


def _random(below: int, count: int, pool: Pool) -> Tensor:
    return torch.randint(below, (count,)).to(pool.truth.device)


def _loss(logits: Tensor, truth: Tensor) -> Tensor:
    logits = logits.float()
    return (2 * bce_per_object(logits, truth) + 0.5 * dice_per_object(logits, truth)).mean()


def train(parameters: Sequence[nn.Parameter], seconds: float, loss_of: Callable[[], Tensor]) -> list[list[float]]:
    """AdamW for `seconds`, with a learning rate that falls linearly with time. Returns [step, seconds, mean loss] of
    every 20 steps.
    """
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.01)
    started, curve, recent, step = time.perf_counter(), [], [], 0
    while (used := (time.perf_counter() - started) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 4e-4 * min(1.0, (step + 1) / 50) * (1 - used)
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent.append(loss.item())
        step += 1
        if step % 20 == 0:
            curve.append([step, round(used * seconds, 1), float(np.mean(recent))])
            recent = []
            print(f"step {step}, {curve[-1][1]} s, loss {curve[-1][2]:.4f}", flush=True)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return curve


def write(predictor: Predictor, base: str, out: Path, learned: dict[str, list[list[float]]]) -> None:
    """Write a folder for load_predictor. Its threshold is 0.5, at which both stages are trained."""
    out.mkdir(parents=True, exist_ok=True)
    predictor.model.config.threshold = 0.5
    folder = read_base_folder(base)
    write_published_folder(
        predictor.model, folder.tokenizer, out, dtype=torch.float32, extra={}, kept={**folder.fields, "auto_map": None}
    )
    (out / "training.json").write_text(json.dumps(learned) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
