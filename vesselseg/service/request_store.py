"""Stored requests (--keep): a folder per image or frame with its results. Without --keep nothing is stored."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from PIL import Image

from vesselseg.errors import UserError, describe_os_error
from vesselseg.inference.predictor import Prediction
from vesselseg.output_folder import temporary_folder
from vesselseg.predict.result_files import ResultWriter, describe_objects
from vesselseg.service.errors import ServiceError

_KINDS = ("masks", "probs", "labelme")
_STEM = "image"


class RequestStore:
    """Writes to subfolders of one folder. A request's folder appears complete and never replaces another one."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def write(
        self, request_id: str, name: str, frame: int, model: str, picture: Image.Image, prediction: Prediction
    ) -> None:
        """Write image.png, masks/, probabilities/, labelme/ and request.json. Raises ServiceError if that fails.

        name: of the uploaded file. frame: of a clip, counted from 0.
        """
        description = {
            "request_id": request_id,
            "name": name,
            "model": model,
            "frame": frame,
            "threshold": prediction.threshold,
            "objects": describe_objects(prediction),
        }
        try:
            with temporary_folder(self._folder / request_id, "keeping") as building:
                image = building / f"{_STEM}.png"
                picture.save(image)
                ResultWriter(building, prediction.phrases, _KINDS).write(_STEM, picture, image, prediction)
                content = json.dumps(description, ensure_ascii=False, indent=1)
                (building / "request.json").write_text(content + "\n", encoding="utf-8")
                self._move(building, request_id)
        except (OSError, UserError) as error:
            reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
            raise ServiceError(
                507, "not_kept", f"this service must store results, and storing this one failed: {reason}"
            ) from None

    def _move(self, building: Path, request_id: str) -> None:
        """Give the folder its final name. Clients choose request ids, so one may occur twice."""
        for name in _names(request_id):
            try:
                building.rename(self._folder / name)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise


def _names(request_id: str) -> Iterator[str]:
    yield request_id
    yield from (f"{request_id}-{number}" for number in count(2))
