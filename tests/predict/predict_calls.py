"""Calls of vesselseg predict inside this process, and readers of its output."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.command_line import call_command
from vesselseg.predict.result_folder import Entry, ResultFolder

ALL = "masks,probs,overlay,labelme,coco"
NAMES = ("frame 1.png", "x.jpg", "x.PNG", "patient ä/造影 01.TIF", "patient ä/x.tif", "二/x.tif")


def call(model: Path, source: Path, out: Path, *arguments: object) -> int:
    return call_command("predict", model, source, "--out", out, "--device", "cpu", *arguments)


def forked(
    model: Path, source: Path, out: Path, *arguments: object, ends_at: int = 0, **environment: str
) -> ForkProcess:
    """The same in a forked process, which saves the time of the imports.

    ends_at: the process kills itself once it has recorded this number of files; a kill from outside could not be timed.
    """

    def work() -> None:
        torch.set_num_threads(1)  # threads do not survive a fork
        os.environ.update(environment)
        if ends_at:
            _end_at(ends_at)
        os._exit(call(model, source, out, *arguments))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def _end_at(files: int) -> None:
    add, recorded = ResultFolder.add, list[str]()

    def counted(self: ResultFolder, entry: Entry) -> None:
        add(self, entry)
        recorded.append(entry["file"])
        if len(recorded) == files:
            os.kill(os.getpid(), signal.SIGKILL)

    ResultFolder.add = counted  # type: ignore[method-assign]


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "predictions.json").read_text(encoding="utf-8"))


def entries(out: Path) -> dict[str, dict[str, Any]]:
    return {entry["file"]: entry for entry in summary(out)["files"]}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)
