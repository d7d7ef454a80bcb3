"""Base folders of both families of language models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.checkpoints.families import write_internlm2_base


@pytest.fixture(scope="module", params=["qwen2", "internlm2"])
def base(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "qwen2":
        return tiny_base
    folder = tmp_path_factory.mktemp("internlm2")
    write_internlm2_base(folder)
    return folder
