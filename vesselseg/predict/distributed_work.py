"""Work divided among the processes that torchrun started; without torchrun one process has all of it.

The processes exchange a few short values through torchrun's own store. There is no process group, because its timeouts
would end a process that waits for a slower one.
"""

from __future__ import annotations

import heapq
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from vesselseg.errors import UserError

_Item = TypeVar("_Item")
_TIMEOUT = timedelta(days=365)  # torchrun ends all processes when one fails, so no other timeout is needed
_POLL_S = 0.2


class DistributedWork:
    """rank: number of this process among `world`. Process 0 is the main one: it owns the folder and reports."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._store: Any = None
        if self.world > 1:
            try:
                self._store = next(distributed.rendezvous("env://"))[0]
            except (RuntimeError, ValueError) as error:
                raise UserError(f"RANK and WORLD_SIZE are set, but torchrun does not respond ({error})") from None
            self._store.set_timeout(_TIMEOUT)

    @property
    def is_main_process(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def select_gpu(self) -> None:
        """Make this process's own GPU the current CUDA device."""
        if self.world > 1 and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())

    def broadcast(self, name: str, make: Callable[[], Any]) -> Any:
        """The value that process 0 computes with `make`, as JSON, on all processes."""
        if self.world == 1:
            return make()
        if self.is_main_process:
            self._store.set(name, json.dumps(make()))
        return json.loads(self._store.get(name))

    def own_share(self, items: Sequence[_Item], sizes: Sequence[int]) -> list[_Item]:
        """This process's items, in order. The largest items go first, each to the process with the least work so far.

        This is the longest-processing-time rule (Graham 1969).
        """
        loads = [(0, rank) for rank in range(self.world)]  # heap of (assigned size, rank)
        owner = {}
        for index in sorted(range(len(items)), key=lambda index: -sizes[index]):
            load, rank = loads[0]
            owner[index] = rank
            heapq.heapreplace(loads, (load + sizes[index] + 1, rank))
        return [item for index, item in enumerate(items) if owner[index] == self.rank]

    def count_finished(self, units: int = 1) -> int:
        """Add finished units; returns the number finished by all processes."""
        return int(self._store.add("finished", units)) if self._store else units

    def gather(self, value: Any, while_waiting: Callable[[], None]) -> list[Any]:
        """The values of all processes on process 0, only its own on the others.

        while_waiting: called every _POLL_S seconds.
        """
        if self.world == 1:
            return [value]
        if not self.is_main_process:
            self._store.set(f"value{self.rank}", json.dumps(value))
            return [value]
        names = [f"value{rank}" for rank in range(1, self.world)]
        while not self._store.check(names):
            while_waiting()
            time.sleep(_POLL_S)
        return [value, *(json.loads(self._store.get(name)) for name in names)]
