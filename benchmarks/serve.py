"""Load on vesselseg serve: errors, latency and memory under many clients, and whether each gets its own result.

usage: python benchmarks/serve.py MODEL --clients 64 --seconds 60 --images data/NAME/images --out serve.json

The service runs in a separate process; arguments after -- are passed to it. Each client has its own address (127.0.1.N)
and sends its next request as soon as it has read the last response. Before that, all clients send one request at the
same time to the idle service, three times. The time until the last response divided by the number of batches is the
queue-free time per batch, including reading, decoding and encoding. The p95 latency under load is compared with it. The
mean time of a batch in the model under load is reported too.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.evaluate import machine
from vesselseg.synthetic.angiograms import draw_angiogram

REPOSITORY = Path(__file__).resolve().parents[1]
START_S = 900.0  # enough to read an 8B model from a slow disk
ROUNDS, PICTURES = 3, 16
BATCHES = "vesselseg_batch_images_count"
MOST_TIMES, MOST_GROWTH = 3.0, 1.05  # p95 / queue-free time per batch; memory at the end / in the middle
DIFFERENT_PIXELS = 0.01  # share of pixels whose probability may differ by more than DIFFERENT_LEVELS of 255
DIFFERENT_LEVELS = 8


@dataclass(frozen=True)
class Picture:
    """An upload, and the response of the idle service to it."""

    name: str
    content: bytes
    picture_png: str  # base64, the image as the service decoded it
    probability: np.ndarray  # (height, width) int, 0 to 255


@dataclass
class Load:
    """Measurements of all clients under load."""

    seconds: list[float] = field(default_factory=list)  # latency of each response
    failures: Counter[str] = field(default_factory=Counter)  # status or exception -> count
    others: int = 0  # responses with another image than the one sent
    differing: float = 0.0  # largest share of pixels that differ from `Picture.probability`
    rss: list[tuple[float, float]] = field(default_factory=list)  # (seconds, bytes)


def main() -> None:
    """Start the service, measure it idle and under load, stop it."""
    arguments, passed_on = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the service would outlive this process
    uploads = read_uploads(arguments.images, min(arguments.clients, PICTURES))
    with started(arguments.model, passed_on) as url:
        result = asyncio.run(measure(url, uploads, arguments.clients, arguments.seconds))
    content = {"model": arguments.model, "options": passed_on, "machine": machine(), **result}
    print(json.dumps(content, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    own, passed_on = sys.argv[1:], []
    if "--" in own:
        place = own.index("--")
        own, passed_on = own[:place], own[place + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder or checkpoint, as for vesselseg serve")
    parser.add_argument("--clients", type=int, default=64, help="at the same time (default: 64)")
    parser.add_argument("--seconds", type=float, default=60, help="of load (default: 60)")
    parser.add_argument("--images", type=Path, help="folder of images (default: drawn angiograms of 512x512)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args(own), passed_on


def read_uploads(folder: Path | None, most: int) -> list[tuple[str, bytes]]:
    """(name, content) of at most `most` images; drawn ones without a folder."""
    if folder is not None:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
        return [(path.name, path.read_bytes()) for path in files[:most]]
    uploads = []
    for number in range(most):
        buffer = io.BytesIO()
        Image.fromarray(draw_angiogram(512, 0, number, 0)[0]).save(buffer, "PNG")
        uploads.append((f"{number}.png", buffer.getvalue()))
    return uploads


@contextmanager
def started(model: str, options: Sequence[str]) -> Iterator[str]:
    """Start the service and yield its address; raises SystemExit unless it stops cleanly on SIGTERM."""
    command = [sys.executable, str(REPOSITORY / "tools" / "serve.py"), model, "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, cwd=Path.cwd(), text=True)
        try:
            yield _address(process, log)
            process.terminate()
            if process.wait(60):
                raise SystemExit(f"the service ended with status {process.returncode}: {_read(log)[-2000:]}")
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[str], log: Any) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"open (http://\S+)/ ", _read(log))
        if found:
            return found[1]
        time.sleep(0.2)
    raise SystemExit(f"the service did not start: {_read(log)[-2000:]}")


def _read(log: Any) -> str:
    return Path(f"/proc/self/fd/{log.fileno()}").read_text(errors="replace")


async def measure(url: str, uploads: Sequence[tuple[str, bytes]], clients: int, seconds: float) -> dict[str, Any]:
    """The figures of `summary`."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as own:
        pictures = [await alone(own, name, content) for name, content in uploads]
        connected = [client_of(url, number) for number in range(clients)]
        try:
            await together(connected, pictures)  # warm-up
            idle = await counts(own)
            free = sum([await together(connected, pictures) for _ in range(ROUNDS)])
            before = await counts(own)
            free /= before[BATCHES] - idle[BATCHES]
            load = Load()
            await under_load(own, connected, pictures, seconds, load)
            after = await counts(own)
        finally:
            for client in connected:
                await client.aclose()
    changed = {name: after[name] - before.get(name, 0.0) for name in after}
    return summary(load, free, changed, clients, seconds)


def client_of(url: str, number: int) -> httpx.AsyncClient:
    """A client with its own address: the service counts requests by address."""
    address = f"127.0.{1 + number // 250}.{1 + number % 250}"
    transport = httpx.AsyncHTTPTransport(local_address=address)
    return httpx.AsyncClient(base_url=url, transport=transport, timeout=600)


async def alone(client: httpx.AsyncClient, name: str, content: bytes) -> Picture:
    """The response to one image while no other client sends any."""
    for pause in count(1):
        answer = await client.post("/predict", files={"image": (name, content)})
        if answer.status_code != 429:
            break
        await asyncio.sleep(pause)
    answer.raise_for_status()
    found = answer.json()
    return Picture(name, content, found["picture_png"], probability_of(found))


def probability_of(found: dict[str, Any]) -> np.ndarray:
    """(height, width) int, 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found["objects"][0]["probability_png"])))).astype(int)


async def together(clients: Sequence[httpx.AsyncClient], pictures: Sequence[Picture]) -> float:
    """Seconds until every client has the response to one request, all sent at the same time."""
    began = time.perf_counter()
    requests = [
        client.post("/predict", files={"image": (picture.name, picture.content)})
        for client, picture in zip(clients, [pictures[number % len(pictures)] for number in range(len(clients))])
    ]
    for answer in await asyncio.gather(*requests):
        answer.raise_for_status()
    return time.perf_counter() - began


async def under_load(
    own: httpx.AsyncClient,
    clients: Sequence[httpx.AsyncClient],
    pictures: Sequence[Picture],
    seconds: float,
    load: Load,
) -> None:
    """Run all clients for `seconds`; sample the memory every second."""
    began = time.perf_counter()
    end = began + seconds

    async def watch() -> None:
        while True:
            load.rss.append((time.perf_counter() - began, (await counts(own))["process_resident_memory_bytes"]))
            await asyncio.sleep(1)

    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*(one_client(client, pictures, place, end, load) for place, client in enumerate(clients)))
    watching.cancel()
    load.rss.append((time.perf_counter() - began, (await counts(own))["process_resident_memory_bytes"]))


async def one_client(
    client: httpx.AsyncClient, pictures: Sequence[Picture], place: int, end: float, load: Load
) -> None:
    """One request after the other until `end`; every response must contain the image that was sent."""
    for number in count(place):
        if time.perf_counter() >= end:
            return
        picture = pictures[number % len(pictures)]
        began = time.perf_counter()
        try:
            answer = await client.post("/predict", files={"image": (picture.name, picture.content)})
        except httpx.HTTPError as error:
            load.failures[type(error).__name__] += 1
            continue
        load.seconds.append(time.perf_counter() - began)
        if answer.status_code != 200:
            load.failures[str(answer.status_code)] += 1
            await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
        elif picture.picture_png.encode() not in answer.content:
            load.others += 1
        elif number % 8 == 0:  # decoding every response would load the measured cores
            different = np.abs(probability_of(answer.json()) - picture.probability) > DIFFERENT_LEVELS
            load.differing = max(load.differing, float(different.mean()))


async def counts(client: httpx.AsyncClient) -> dict[str, float]:
    """Values of /metrics, summed over labels."""
    found: Counter[str] = Counter()
    for line in (await client.get("/metrics")).text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name.partition("{")[0]] += float(value)
    return dict(found)


def summary(load: Load, free: float, changed: dict[str, float], clients: int, seconds: float) -> dict[str, Any]:
    """Figures, and whether the targets are met. free: queue-free seconds per batch; changed: /metrics under load."""
    p50, p95, p99 = (float(np.percentile(load.seconds, part)) for part in (50, 95, 99))
    batches = changed[BATCHES]
    in_model = changed["vesselseg_model_seconds_sum"] / batches
    start, middle, end = (at_time(load.rss, part * seconds) / 2**20 for part in (0.0, 0.5, 1.0))
    good = len(load.seconds) - sum(value for name, value in load.failures.items() if name.isdigit())
    return {
        "clients": clients,
        "seconds": seconds,
        "requests": good,
        "errors": dict(load.failures),
        "answers_of_others": load.others,
        "most_differing_pixels": round(load.differing, 6),
        "requests_per_s": round(good / load.rss[-1][0], 2),
        "latency_s": {
            "p50": round(p50, 3),
            "p95": round(p95, 3),
            "p99": round(p99, 3),
            "max": round(max(load.seconds), 3),
        },
        "batch_images": round(changed["vesselseg_batch_images_sum"] / batches, 1),
        "in_queue_s": round(changed["vesselseg_queue_seconds_sum"] / changed["vesselseg_queue_seconds_count"], 3),
        "in_model_s_per_batch": round(in_model, 3),
        "queue_free_s_per_batch": round(free, 3),
        "p95_by_queue_free": round(p95 / free, 2),
        "p95_by_model_batch": round(p95 / in_model, 2),
        "rss_mib": {"start": round(start), "middle": round(middle), "end": round(end)},
        "targets": {
            "no_error": not load.failures and not load.others and load.differing <= DIFFERENT_PIXELS,
            "memory_flat": end <= MOST_GROWTH * middle,
            "p95_within_3x": p95 <= MOST_TIMES * free,
        },
    }


def at_time(rss: Sequence[tuple[float, float]], seconds: float) -> float:
    """The sample closest to a time."""
    return min(rss, key=lambda sample: abs(sample[0] - seconds))[1]


if __name__ == "__main__":
    main()
