"""Signs of life of training processes, for the launcher of their node.

A thread of each process touches a file once a second, whatever the process is busy with: compiling, filling a store,
validating or writing a checkpoint may take as long as they need. A process that was stopped, or hangs inside the
operating system or a driver, touches it no more. Time limits of collective operations tell less: they cannot know a
long step from a lost process, so DeepSpeed's 30 minutes (DEEPSPEED_TIMEOUT) stay as the net behind this one.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

# The folder of these files, and the launcher that watches it.
FOLDER_VARIABLE, LAUNCHER_VARIABLE = "VESSELSEG_HEARTBEATS", "VESSELSEG_LAUNCHER"
INTERVAL = 1.0
LONGEST_LOOK = 2 * INTERVAL
ORPHANED = 1


def start_beating() -> None:
    """Give signs of life from now on, if a launcher asks for them; without that launcher, end."""
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
    os._exit(ORPHANED)  # nobody would end this process, and it would keep its GPU


class Watching:
    """A clock of the seconds in which somebody was there to see a sign of life.

    A pause between two looks counts as LONGEST_LOOK at most: whoever was stopped, or stood still with the machine, has
    seen nothing meanwhile, and those that it looks at may have stood still with it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = 0.0
        self._last = time.monotonic()

    def look(self) -> float:
        """Seconds so far; to be called more often than every LONGEST_LOOK."""
        with self._lock:
            now = time.monotonic()
            self._seen += min(now - self._last, LONGEST_LOOK)
            self._last = now
            return self._seen


class Heartbeats:
    """What a launcher sees of its processes. folder: where they touch their files; lost_after: seconds."""

    def __init__(self, folder: Path, lost_after: float) -> None:
        self.folder = folder
        self.lost_after = lost_after
        self._watching = Watching()
        self._seen: dict[str, tuple[float, float]] = {}  # by rank: what the file's clock said, and when it was new

    def silent(self) -> tuple[int, int] | None:
        """Rank and process id of a process that is there and has given no sign of life for too long.

        One that has ended is no news from here: the launcher knows how. Counted from a process's first sign on, in the
        time in which the launcher was there to see.
        """
        now = self._watching.look()
        for file in sorted(self.folder.iterdir()):
            touched = file.stat().st_mtime
            if file.name not in self._seen or self._seen[file.name][0] != touched:
                self._seen[file.name] = (touched, now)
            elif now - self._seen[file.name][1] > self.lost_after and is_there(process := int(file.read_text())):
                return int(file.name), process
        return None


def is_there(process: int) -> bool:
    """Whether a process exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
