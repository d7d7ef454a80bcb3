"""Shared parts of all HTML reports: templates, style sheet, images as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(template_name: str, folder: Path = TEMPLATES, **context: Any) -> str:
    """Render a template of the folder, e.g. ``prepare.html.j2``; a name missing in context raises UndefinedError.

    Templates may include files of the folder and of ``TEMPLATES``.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["percent"] = _percent
    return environment.get_template(template_name).render(**context)


def page_file(name: str, folder: Path) -> bytes:
    """Bytes of a style sheet or script of a served page: from its folder, else from ``TEMPLATES``.

    name is not checked: callers must not pass names from requests.
    """
    path = folder / name
    return (path if path.exists() else TEMPLATES / name).read_bytes()


def png_data_uri(array: np.ndarray) -> str:
    """(height, width) or (height, width, 3) uint8 as a lossless data URI."""
    return _data_uri(array, "png", optimize=True)


def jpeg_data_uri(array: np.ndarray, quality: int = 88) -> str:
    """(height, width) or (height, width, 3) uint8 as a small data URI; quality 1..95."""
    return _data_uri(array, "jpeg", quality=quality)


def _data_uri(array: np.ndarray, kind: str, **options: Any) -> str:
    if array.dtype != np.uint8:
        raise TypeError(f"expected uint8 pixels, found {array.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _number(value: float, digits: int = 0) -> str:
    """12345.6 -> 12,346."""
    return f"{value:,.{digits}f}"


def _percent(value: float, digits: int = 1) -> str:
    """0.0312 -> 3.1 %."""
    return f"{100 * value:.{digits}f} %"
