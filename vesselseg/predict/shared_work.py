"""Units shared out among the processes that torchrun started; without it, one process has them all.

The processes talk through torchrun's own store, by a few short values. There is no process group, whose time limits
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
_PATIENCE = timedelta(days=365)  # torchrun ends the others when one process fails; nothing else is waited for
_POLL_S = 0.2


class SharedWork:
    """rank: this process, of `world`. Process 0 leads: it holds the folder and tells the user."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._store: Any = None
        if self.world > 1:
            try:
                self._store = next(distributed.rendezvous("env://"))[0]
            except (RuntimeError, ValueError) as error:
                raise UserError(f"RANK and WORLD_SIZE are set, but no torchrun answers ({error})") from None
            self._store.set_timeout(_PATIENCE)

    @property
    def is_main_process(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def choose_gpu(self) -> None:
        """Let `cuda` mean this process's own GPU."""
        if self.world > 1 and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())

    def broadcast(self, name: str, make: Callable[[], Any]) -> Any:
        """What process 0 makes, as JSON holds it, on all of them."""
        if self.world == 1:
            return make()
        if self.is_main_process:
            self._store.set(name, json.dumps(make()))
        return json.loads(self._store.get(name))

    def share(self, items: Sequence[_Item], sizes: Sequence[int]) -> list[_Item]:
        """This process's items, in their order; each item goes to one process, the largest first to the least busy."""
        busy = [(0, rank) for rank in range(self.world)]
        owner = {}
        for number in sorted(range(len(items)), key=lambda number: -sizes[number]):
            load, rank = busy[0]
            owner[number] = rank
            heapq.heapreplace(busy, (load + sizes[number] + 1, rank))
        return [item for number, item in enumerate(items) if owner[number] == self.rank]

    def advance(self, units: int = 1) -> int:
        """Count finished units; returns how many all processes have finished."""
        return int(self._store.add("finished", units)) if self._store else units

    def gather(self, value: Any, waiting: Callable[[], None]) -> list[Any]:
        """Values of all processes, on process 0; on the others theirs alone. waiting: called now and then meanwhile."""
        if self.world == 1:
            return [value]
        if not self.is_main_process:
            self._store.set(f"value{self.rank}", json.dumps(value))
            return [value]
        names = [f"value{rank}" for rank in range(1, self.world)]
        while not self._store.check(names):
            waiting()
            time.sleep(_POLL_S)
        return [value, *(json.loads(self._store.get(name)) for name in names)]
