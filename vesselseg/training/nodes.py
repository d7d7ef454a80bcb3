"""The launchers of several nodes: they wait for each other before anything starts, and share their losses.

All communication goes through the store of the first node at MASTER_ADDR:PORT, in a thread of its own, because a call
to a node without power does not return.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import DistNetworkError, TCPStore

from vesselseg.errors import UserError
from vesselseg.training.heartbeat import ObservedTime

LOSS = "vesselseg/loss"
COMPLETE = "vesselseg/complete"
POLL = 0.5  # seconds
REPORTING = 15.0  # seconds within which a loss must reach the other nodes


@dataclass(frozen=True)
class Loss:
    """Why a job ends. text: a sentence for people. status: exit status of all launchers."""

    text: str
    status: int


class Nodes:
    """One node's view of all. wait: seconds for all to arrive; lost_after: seconds of silence that mean a lost node."""

    def __init__(self, count: int, rank: int, address: str, port: int, *, wait: float, lost_after: float) -> None:
        self.count = count
        self.rank = rank
        self.address = address
        self.port = port
        self.wait = wait
        self.lost_after = lost_after
        self.loss: Loss | None = None
        self._own_loss: Loss | None = None
        self._clock = ObservedTime()
        self._heard = 0.0  # by that clock: when the first node last answered
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._stay_in_touch, daemon=True)
        self._beats: dict[int, tuple[bytes, float]] = {}
        self._silent: set[int] = set()

    def meet(self) -> None:
        """Wait until all nodes have arrived; raises UserError that names the missing ones."""
        self._until = time.monotonic() + self.wait
        if self.rank:
            self._wait_for_first()
        try:
            self._join()
        except DistNetworkError as error:
            if self.rank == 0:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"PORT={self.port} cannot be opened on this node ({reason}); use another one on every node"
                ) from None
            raise self._first_node_ended() from error
        except RuntimeError as error:
            if self.rank == 0:
                raise
            raise self._first_node_ended() from error
        self._heard = self._clock.read()
        self._thread.start()

    def _first_node_ended(self) -> UserError:
        return UserError(f"node 0 at {self.address}:{self.port} ended before all nodes had arrived")

    def _join(self) -> None:
        self._store = TCPStore(
            self.address,
            self.port,
            is_master=self.rank == 0,
            timeout=timedelta(seconds=60),
            wait_for_workers=False,
            multi_tenant=True,  # torch's own rendezvous opens the same port in this process
        )
        if self._store.add(self._key("present"), 1) > 1:
            raise UserError(f"two nodes have NODE_RANK={self.rank}; every node needs its own number, from 0 on")
        self._store.set(self._key("name"), socket.gethostname())
        self._wait_for_all() if self.rank == 0 else self._wait_until_complete()

    def news(self) -> Loss | None:
        """The loss of another node, or the loss of the first node."""
        silence = self._clock.read() - self._heard
        if self.loss is None and silence > self.lost_after:
            self.loss = self._lost_node(0)
        return self.loss

    def report(self, loss: Loss) -> Loss:
        """Report a loss to all nodes; returns the one that was reported first."""
        self._own_loss = loss
        until = time.monotonic() + REPORTING
        while self.loss is None and time.monotonic() < until:
            time.sleep(POLL / 5)
        return self.loss or loss

    def leave(self) -> None:
        """End the communication; the first node, which owns the store, waits until the others have read the loss."""
        self._over.set()
        self._thread.join(REPORTING)
        try:
            self._store.set(self._key("left"), "")
            if self.rank == 0:
                self._wait_until_left([node for node in range(1, self.count) if node not in self._silent])
        except RuntimeError:
            return  # the first node has left before

    def _wait_until_left(self, others: list[int]) -> None:
        """Until they have read the reported loss, or for REPORTING seconds."""
        left, until = [self._key("left", node) for node in others], time.monotonic() + REPORTING
        while left and not self._store.check(left) and time.monotonic() < until:
            time.sleep(POLL / 5)

    def _key(self, what: str, node: int | None = None) -> str:
        return f"vesselseg/{what}/{self.rank if node is None else node}"

    def _stay_in_touch(self) -> None:
        number = 0
        while not self._over.wait(POLL):
            number += 1
            try:
                self._exchange(number)
            except RuntimeError:
                if not self._over.is_set():
                    self.loss = self.loss or self._lost_node(0)
                return
            self._heard = self._clock.read()
            if self.loss is not None:
                return

    def _exchange(self, number: int) -> None:
        self._store.set(self._key("alive"), str(number))
        loss = self._own_loss  # another thread may set it at any moment, through `report`
        if loss is None and self.rank == 0:
            loss = self._silent_node()
        if loss is not None:
            self._store.compare_set(LOSS, "", json.dumps(asdict(loss)))
        if reported := self._reported_loss():
            self.loss = reported

    def _reported_loss(self) -> Loss | None:
        """The loss that was reported first, if any; the first node is notified that this one has read it."""
        if not self._store.check([LOSS]):
            return None
        loss = Loss(**json.loads(self._store.get(LOSS)))
        self._store.set(self._key("left"), "")
        return loss

    def _silent_node(self) -> Loss | None:
        now = self._clock.read()
        for node in range(1, self.count):
            if self._store.check([self._key("left", node)]):
                continue
            beat = self._store.get(self._key("alive", node)) if self._store.check([self._key("alive", node)]) else b""
            if node not in self._beats or self._beats[node][0] != beat:
                self._beats[node] = (beat, now)
            elif now - self._beats[node][1] > self.lost_after:
                self._silent.add(node)
                return self._lost_node(node)
        return None

    def _lost_node(self, node: int) -> Loss:
        name = self.address if node == 0 else self._store.get(self._key("name", node)).decode()
        return Loss(f"node {node} ({name}) is lost: its launcher ended, or the network to it", 1)

    def _wait_for_first(self) -> None:
        said = 0.0
        while True:
            try:
                socket.create_connection((self.address, self.port), timeout=5).close()
                return
            except OSError as error:
                reason = error.strerror or str(error)
            said = self._say_waiting(f"node 0 at {self.address}:{self.port} ({reason})", said)
            if time.monotonic() > self._until:
                raise UserError(
                    f"node {self.rank} could not reach node 0 at {self.address}:{self.port} within {self.wait:.0f} s "
                    f"({reason}). Is it started, are MASTER_ADDR and PORT the same on every node, and does the network "
                    "let this port through? NODES_WAIT sets how many seconds to wait"
                )
            time.sleep(POLL)

    def _wait_for_all(self) -> None:
        said = 0.0
        while missing := [n for n in range(self.count) if not self._store.check([self._key("name", n)])]:
            named = ", ".join(map(str, missing))
            said = self._say_waiting(f"node(s) {named} of {self.count} to call {self.address}:{self.port}", said)
            if time.monotonic() > self._until:
                text = (
                    f"node(s) {named} of {self.count} did not call {self.address}:{self.port} within {self.wait:.0f} s"
                    ". Start the same command there, with that NODE_RANK and the same NNODES, MASTER_ADDR and PORT; "
                    "NODES_WAIT sets how many seconds to wait"
                )
                self._store.set(LOSS, json.dumps(asdict(Loss(text, 2))))
                self._wait_until_left([node for node in range(1, self.count) if node not in missing])
                raise UserError(text)
            time.sleep(POLL)
        self._store.set(COMPLETE, "")

    def _wait_until_complete(self) -> None:
        while not self._store.check([COMPLETE]):
            if loss := self._reported_loss():
                raise UserError(loss.text)
            time.sleep(POLL)

    def _say_waiting(self, whom: str, said: float) -> float:
        """One line every half minute; none in the first two seconds, because nodes rarely start at the same moment."""
        waited = time.monotonic() - (self._until - self.wait)
        if waited - said < (30 if said else 2):
            return said
        sys.stderr.write(f"node {self.rank}: waiting for {whom}, {waited:.0f} s of {self.wait:.0f}\n")
        return waited
