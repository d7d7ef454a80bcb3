"""Heartbeats of training processes, for the launcher of their node.

A thread of each process touches a file once a second, whatever the process is computing: compiling, filling a feature
store, validating or writing a checkpoint may take as long as they need. A process that was stopped, or hangs inside the
operating system or a driver, no longer touches it. Timeouts of collective operations cannot tell a long step from a
lost process, so DeepSpeed's 30 minutes (DEEPSPEED_TIMEOUT) remain the last resort. torch's own watchdog
(TORCHELASTIC_ENABLE_FILE_TIMER) uses the wall clock and kills healthy processes after the machine was suspended.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

# Folder of these files, and process id of the launcher that watches it.
FOLDER_VARIABLE, LAUNCHER_VARIABLE = "VESSELSEG_HEARTBEATS", "VESSELSEG_LAUNCHER"
INTERVAL = 1.0  # seconds
LONGEST_GAP = 2 * INTERVAL
ORPHANED = 1  # exit status of a process whose launcher is gone


def start_heartbeat() -> None:
    """Touch this process's file from now on, if a launcher watches; exit when that launcher is gone."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        file = Path(folder) / os.environ["RANK"]
        with suppress(FileNotFoundError):  # the launcher removes its folder when it ends
            file.write_text(str(os.getpid()))
        threading.Thread(target=_beat, args=(file, int(os.environ[LAUNCHER_VARIABLE])), daemon=True).start()


def _beat(file: Path, launcher: int) -> None:
    with suppress(FileNotFoundError):
        while os.getppid() == launcher:
            os.utime(file)
            time.sleep(INTERVAL)
    os._exit(ORPHANED)  # nobody else would end this process, and it would keep its GPU


class ObservedTime:
    """A clock that counts only the seconds in which this process was running.

    A pause between two readings counts as LONGEST_GAP at most: if this process was stopped, or its machine suspended,
    it could not see any heartbeat, and the observed processes may have been stopped with it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._last = time.monotonic()

    def read(self) -> float:
        """Seconds so far; to be called more often than every LONGEST_GAP."""
        with self._lock:
            now = time.monotonic()
            self._seconds += min(now - self._last, LONGEST_GAP)
            self._last = now
            return self._seconds


class Heartbeats:
    """A launcher's view of its processes. folder: of the heartbeat files; lost_after: seconds."""

    def __init__(self, folder: Path, lost_after: float) -> None:
        self.folder = folder
        self.lost_after = lost_after
        self._clock = ObservedTime()
        self._seen: dict[str, tuple[float, float]] = {}  # by rank: the file's modification time, and when it was new

    def silent(self) -> tuple[int, int] | None:
        """Rank and process id of a process that exists and has given no heartbeat for too long, None if there is none.

        Processes that have ended are reported by torchrun. Time counts from a process's first heartbeat on.
        """
        now = self._clock.read()
        for file in sorted(self.folder.iterdir()):
            touched = file.stat().st_mtime
            if file.name not in self._seen or self._seen[file.name][0] != touched:
                self._seen[file.name] = (touched, now)
            elif now - self._seen[file.name][1] > self.lost_after and _exists(process := int(file.read_text())):
                return int(file.name), process
        return None


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
