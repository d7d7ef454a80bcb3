"""Base folders of published sizes: config.json, tokenizer and, optionally, random weights.

usage: python benchmarks/shapes.py OUT 8B [--weights]

Without weights, a folder is enough for `model.sa2va.random_weights=True` and for the memory plan. Weights are bf16
shards of 5 GB in the published layout plus SAM2-L's file: everything that a training reads from disk at its start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen2TokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.models.checkpoints.full_shapes import FAMILIES, Shapes, config_of, published_shapes
from vesselseg.models.sa2va_config import SAM2_LARGE
from vesselseg.models.sam2_grounding import build_sam2
from vesselseg.models.tiny_base import tiny_tokenizer, write_tiny_base

SIZES = {"2B": "InternVL3-2B", "8B": "InternVL3-8B", "14B": "InternVL3-14B", "26B": "InternVL2.5-26B"}
TINY = "tiny"  # the small model of configs/tiny_cpu.py, always with its weights
SAM2_FILE = "sam2_hiera_large.pt"
SHARD_BYTES = 5_000_000_000
BLOCK = 1 << 24  # random numbers, written repeatedly


def main() -> None:
    """Write one folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("size", choices=[*SIZES, TINY])
    parser.add_argument("--weights", action="store_true")
    args = parser.parse_args()
    write_base(args.out, args.size, weights=args.weights)


def write_base(folder: Path, size: str, weights: bool = False) -> Path:
    """Write the folder and return it. size: a key of SIZES, or TINY."""
    if size == TINY:
        write_tiny_base(folder)
        return folder
    folder.mkdir(parents=True)
    family = FAMILIES[SIZES[size]]
    config = config_of(family)
    content = {"model_type": "internvl_chat", "llm_config": config.llm_config, "vision_config": config.vision_config}
    padded_tokenizer(family.vocabulary).save_pretrained(folder)
    if weights:
        shapes = {name: shape for name, shape in published_shapes(family).items() if "text_hidden_fcs" not in name}
        write_weights(folder, shapes)
        torch.save({"model": build_sam2(SAM2_LARGE).state_dict()}, folder / SAM2_FILE)
    (folder / "config.json").write_text(json.dumps(content | {"template": "internvl2_5"}))
    return folder


def padded_tokenizer(rows: int) -> Qwen2TokenizerFast:
    """The tiny model's tokenizer, padded with words that occur in no text to `rows` tokens."""
    content = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    special = [token["content"] for token in content["added_tokens"]]
    words = content["model"]["vocab"]
    first = len(words)
    words.update({f"filler {number}": number for number in range(first, rows - len(special))})
    tokenizer = Tokenizer.from_str(json.dumps({**content, "added_tokens": []}))
    tokenizer.add_special_tokens(special)
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        additional_special_tokens=[token for token in special if token not in ("<|im_end|>", "<|endoftext|>")],
    )


def write_weights(folder: Path, shapes: Shapes) -> None:
    """Write bf16 shards and their index, all shards in parallel."""
    shards: list[Shapes] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        if filled and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    noise = (torch.randn(BLOCK) * 0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    files = {folder / f"model-{number:05d}.safetensors": shard for number, shard in enumerate(shards, start=1)}
    with ThreadPoolExecutor(len(files)) as pool:
        list(pool.map(lambda item: write_shard(*item, noise), files.items()))
    index = {name: path.name for path, shard in files.items() for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_shard(path: Path, shapes: Mapping[str, tuple[int, ...]], noise: bytes) -> None:
    """Write one safetensors file without its tensors in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(noise)):
            file.write(noise[: end - start] if end - start < len(noise) else noise)


def forget(folder: Path) -> None:
    """Flush a folder's files and drop them from the page cache, so that the next reader reads the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
