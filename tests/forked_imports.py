"""Several imports under different conditions in one new interpreter: what they share is imported once.

Each import is a fork of that interpreter, after the stage that it names, and has stdout, stderr and exit status of its
own. Between stages the interpreter imports what the next forks would import each for themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.import_rules import REPOSITORY, TRAINING_ONLY

# None in sys.modules makes an import fail and find_spec say that the package is not there.
BLOCK = f"""
import sys
for name in {TRAINING_ONLY!r}: sys.modules[name] = None
"""
# Third-party packages print and write while they are imported; they are imported first and not looked at.
STAGES = {
    "nothing": "",
    "without training packages": f"""{BLOCK}
import torch, torchvision, transformers.modeling_utils, transformers.generation
import matplotlib.figure, skimage.filters, scipy.ndimage, sklearn.metrics, cv2, pycocotools.mask
import jinja2, yaml, fastapi, uvicorn, prometheus_client
assert not [name for name in sys.modules if name.partition(".")[0] in ("vesselseg", "peft", "bitsandbytes")]
""",
    "everything": f"""
import sys
for name in {TRAINING_ONLY!r}: del sys.modules[name]
import peft, mmengine.runner, deepspeed, xtuner.engine._strategy, sam2.build_sam
assert not [name for name in sys.modules if name.partition(".")[0] == "vesselseg"]
""",
}


@dataclass(frozen=True)
class Import:
    """stage: after which it is forked. code: what runs; arguments: its sys.argv[1:]."""

    stage: str
    code: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How an import ended."""

    status: int
    stdout: str
    stderr: str


def run_imports(imports: dict[str, Import]) -> dict[str, Outcome]:
    """Run them in order of their stages; the names of the result are those given."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(REPOSITORY)}
    work = {name: (one.stage, one.code, one.arguments) for name, one in imports.items()}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from tests.forked_imports import serve; serve(sys.stdin.read())"],
        input=json.dumps(work),
        capture_output=True,
        text=True,
        env=environment,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: Outcome(**one) for name, one in json.loads(done.stdout.splitlines()[-1]).items()}


def serve(text: str) -> None:
    """In the new interpreter: all stages, and on the last line of stdout how each import ended."""
    left, outcomes = json.loads(text), {}
    for stage, before in STAGES.items():
        if not left:
            break
        exec(before, {})
        for name in [name for name, one in left.items() if one[0] == stage]:
            _, code, arguments = left.pop(name)
            outcomes[name] = forked(code, arguments)
    print("\n" + json.dumps(outcomes), flush=True)


def forked(code: str, arguments: Sequence[str]) -> dict[str, object]:
    """Run code in a fork of this process, as `python -c CODE ARGUMENTS` would."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder) / "stdout", Path(folder) / "stderr"
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            for number, path in ((1, stdout), (2, stderr)):
                with path.open("w") as file:
                    os.dup2(file.fileno(), number)
            sys.argv = ["-c", *arguments]
            status = 0
            try:
                exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
                if isinstance(end.code, str):
                    sys.stderr.write(end.code)
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, ended = os.waitpid(process, 0)
        texts = {"stdout": stdout.read_text(), "stderr": stderr.read_text()}
        return {"status": os.waitstatus_to_exitcode(ended), **texts}
