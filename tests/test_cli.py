"""Bad input ends as one message and status 2; a defect keeps its traceback."""

from __future__ import annotations

import errno

import pytest

from vesselseg.errors import ManifestError, UserError
from vesselseg.progress import progress_bar
from vesselseg.run_tool import run_tool


def run(error: BaseException | None, result: int | None = None) -> object:
    def main() -> int | None:
        if error is not None:
            raise error
        return result

    with pytest.raises(SystemExit) as caught:
        run_tool(main)
    return caught.value.code


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (3, 3)])
def test_status_of_a_tool(result: int | None, status: int) -> None:
    assert run(None, result) == status


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("a is wrong"), "error: a is wrong\n"),
        (ManifestError("b is wrong"), "error: b is wrong\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.json"), "x.json: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), "no permission"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    ],
)
def test_bad_input_is_one_message(error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(error) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_interrupt() -> None:
    assert run(KeyboardInterrupt()) == 130


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), OSError(errno.EPIPE, "pipe"), AssertionError()])
def test_defects_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run(error)


@pytest.mark.parametrize("seconds", [29.0, 31.0])
def test_a_log_tells_how_far_a_long_run_is(
    seconds: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1e9
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    with progress_bar(3, "predicting", "file") as bar:
        bar.update(1)
        now += seconds
        bar.update(1)
    assert ("predicting:  67%" in capsys.readouterr().err) == (seconds > 30)
