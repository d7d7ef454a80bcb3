"""Services with a tiny model of the real classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser import Browser
from tests.imaging.dicom_files import write_dicom
from tests.samples import processor_of
from tests.service.driven_page import HEIGHT, WIDTH, Page
from tests.service.running import RunningService
from tests.tiny import picture, shaken_model
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.service.settings import ServiceSettings


@pytest.fixture(scope="session")
def predictor(tiny_base: Path) -> Sa2VAPredictor:
    model = shaken_model(tiny_base)
    return Sa2VAPredictor(model, processor_of(model, tiny_base), threshold=0.4)


@pytest.fixture(scope="session")
def other_predictor(tiny_base: Path) -> Sa2VAPredictor:
    model = shaken_model(tiny_base, seed=1)
    return Sa2VAPredictor(model, processor_of(model, tiny_base), threshold=0.6)


@pytest.fixture(scope="session")
def start(predictor: Sa2VAPredictor) -> Callable[..., Any]:
    """start(queue=1, ...): a service with the tiny model, or with `models`, as a context manager."""

    @contextmanager
    def running(models: dict[str, Sa2VAPredictor] | None = None, **settings: Any) -> Iterator[RunningService]:
        with RunningService(models or {"tiny": predictor}, ServiceSettings(port=0, **settings)) as service:
            yield service

    return running


@pytest.fixture(scope="session")
def service(predictor: Sa2VAPredictor, other_predictor: Sa2VAPredictor) -> Iterator[RunningService]:
    """A service with two models, shared by all tests that do not change it."""
    settings = ServiceSettings(port=0, rate=0, max_megabytes=1)
    with RunningService({"tiny": predictor, "other": other_predictor}, settings) as running:
        yield running


@pytest.fixture
def page(browser: Browser, service: RunningService, tmp_path: Path) -> Page:
    return Page(browser, service, tmp_path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with structure."""
    path = tmp_path / "LAO 30.png"
    picture(3, WIDTH, HEIGHT).save(path)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Three frames."""
    path = tmp_path / "clip.dcm"
    write_dicom(path, np.stack([np.asarray(picture(seed, WIDTH, HEIGHT).convert("L")) for seed in (5, 6, 7)]))
    return path
