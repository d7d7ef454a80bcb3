"""How fast this machine is now: time limits and budgets of tests are those of an idle core and grow with this.

CPU time grows where cores are slower or share a physical one, wall time where other work takes its turn as well.
"""

from __future__ import annotations

import os
import time

VARIABLE = "VESSELSEG_TESTS_SLOWER"  # in CPU time, measured by the process that starts the session
ROUNDS = 2_000_000
REFERENCE = 0.065  # seconds that an idle core (Xeon, 2.8 GHz) takes for the rounds
LONGEST = 10.0  # a test that needs more time than this many idle machines waits for nothing
FRESH = 60.0  # seconds for which a measurement holds

_measured: tuple[float, float] | None = None  # when, and the wall time then


def configure() -> None:
    """Measure once per session; its workers (-n) inherit the result. For pytest_configure."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = f"{measure()[0]:.3f}"


def measure() -> tuple[float, float]:
    """CPU time and wall time of a piece of work, as multiples of what an idle core takes."""
    cpu, wall = time.process_time(), time.monotonic()
    total = 0
    for number in range(ROUNDS):
        total += number
    return (time.process_time() - cpu) / REFERENCE, (time.monotonic() - wall) / REFERENCE


def slower() -> float:
    """How many times the CPU time of an idle core work takes on this machine, from 1."""
    return max(1.0, float(os.environ[VARIABLE]))


def patience(seconds: float) -> float:
    """The time limit now for something that takes an idle machine at most that many seconds."""
    global _measured
    now = time.monotonic()
    if _measured is None or now - _measured[0] > FRESH:
        _measured = now, measure()[1]
    return seconds * min(LONGEST, max(1.0, _measured[1]))
