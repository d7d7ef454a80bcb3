"""Peak host memory of loading a base folder in bf16 on the CPU and of writing it, at published sizes.

usage: python benchmarks/load_memory.py --sizes 2B 8B --folder /tmp/load_memory --out docs/results/load_memory.json

The folder is generated (random blocks in the published layout, shards of 5 GB, the full vocabulary, SAM2-L) and deleted
afterwards. RssAnon is the process's private memory; RSS also counts pages of memory-mapped files, which the system can
reclaim.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.shapes import SAM2_FILE, SIZES, write_base
from vesselseg.machine import GIB


def main() -> None:
    """For each size: generate, measure in new processes, delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["2B", "8B"])
    parser.add_argument("--folder", type=Path, required=True, help="folder to create; must not exist")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--ranks", type=int, default=1, help="2 or more: partitioned as in ZeRO-3, loading only")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure) if args.ranks == 1 else measure_partitioned(args.measure)))
        return
    args.folder.mkdir(parents=True)
    results = {}
    try:
        for size in args.sizes:
            base = args.folder / SIZES[size]
            write_base(base, size, weights=True)
            found = [json.loads(text.splitlines()[-1]) for text in run(base, args.folder, args.ranks)]
            results[size] = found[0] if args.ranks == 1 else {f"rank {rank}": one for rank, one in enumerate(found)}
            print(size, json.dumps(results[size], indent=1), flush=True)
            shutil.rmtree(base)
    finally:
        shutil.rmtree(args.folder)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def run(base: Path, folder: Path, ranks: int) -> list[str]:
    """Output of each measuring process."""
    command = [sys.executable, __file__, "--folder", str(folder), "--ranks", str(ranks), "--measure", str(base)]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29871", "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            command,
            text=True,
            stdout=subprocess.PIPE,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a measuring process failed; see its message above")
    return outputs


class Watch:
    """Context manager: peaks of this process's memory, sampled every 5 ms."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.running = True
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        gc.collect()
        self.before = memory()
        self.started = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.started
        self.running = False
        self.thread.join()

    def _run(self) -> None:
        while self.running:
            for name, value in memory().items():
                self.peaks[name] = max(self.peaks.get(name, 0), value)
            time.sleep(0.005)

    def report(self) -> dict[str, float]:
        """Peak GiB above the memory at the start, and seconds."""
        grown = {f"peak_{name}_gib": round((self.peaks[name] - self.before[name]) / GIB, 3) for name in self.peaks}
        return {**grown, "seconds": round(self.seconds, 1)}


def memory() -> dict[str, int]:
    """Bytes of VmRSS and of its part RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "RssAnon")))
    return {name: int(value.split()[0]) * 1024 for name, value in values.items()}


def measure(base: Path, sam2: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Load in bf16 with adapters, then write the folder; GiB and seconds. sam2: its config (default: SAM2-L)."""
    from vesselseg.models.build import build_model
    from vesselseg.models.checkpoints.base_folder import read_base_folder
    from vesselseg.models.checkpoints.shards import weight_files
    from vesselseg.models.checkpoints.write_published import write_published_folder
    from vesselseg.models.lora import merge_lora

    read_base_folder(base)  # imports and tokenizers are loaded before the measurement
    with Watch() as loading:
        model = build_model(str(base), sam2={**(sam2 or {}), "checkpoint": str(base / SAM2_FILE)}, dtype=torch.bfloat16)
    tensors = [*model.parameters(), *model.buffers()]
    held = sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
    shards = [file.stat().st_size for file in weight_files(base)]
    result: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model_gib": round(held / GIB, 3),
        "shards": len(shards),
        "largest_shard_gib": round(max(shards) / GIB, 3),
        "load": loading.report(),
    }
    merge_lora(model)
    tokenizer, out = read_base_folder(base).tokenizer, base / "written"
    out.mkdir()
    limit = 2_000_000_000
    with Watch() as writing:
        write_published_folder(model, tokenizer, out, dtype=torch.bfloat16, extra={}, shard_bytes=limit)
    result["write"] = {"shard_limit_gib": round(limit / GIB, 3), **writing.report()}
    return result


def measure_partitioned(base: Path) -> dict[str, Any]:
    """Load one rank's share of weights that are partitioned during construction, as ZeRO-3 does."""
    import deepspeed

    from vesselseg.models.build import build_model
    from vesselseg.training.strategy import assign_partitioned

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    settings = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
    with Watch() as loading:
        model = build_model(
            str(base),
            sam2={"checkpoint": str(base / SAM2_FILE)},
            dtype=torch.bfloat16,
            construction=lambda: deepspeed.zero.Init(config_dict_or_path=settings),
            assign=assign_partitioned,
        )
    parameters = list(model.parameters())
    whole = sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in parameters)
    held = sum((parameter.ds_tensor if hasattr(parameter, "ds_id") else parameter).nbytes for parameter in parameters)
    return {"parameters": whole, "held_gib": round(held / GIB, 3), "load": loading.report()}


if __name__ == "__main__":
    main()
