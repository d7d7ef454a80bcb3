"""GPUs by name, with the figures that the estimates of time and memory need.

Sources: NVIDIA's datasheets (GA102 and AD102 whitepapers; A100, H100 and H200 datasheets), dense bf16 figures with
float32 accumulation. PCIe and NVLink are half of the datasheets' figure for both directions, PCIe less protocol.
"""

from __future__ import annotations

from dataclasses import dataclass

from vesselseg.errors import UserError


@dataclass(frozen=True)
class Card:
    """One kind of GPU."""

    name: str
    gib: float  # memory
    tflops: float  # dense bf16, 1e12 per second
    memory_gbs: float  # bandwidth of its memory, 1e9 bytes per second
    host_gbs: float  # to main memory, 1e9 bytes per second
    peer_gbs: float  # to other GPUs of the machine, 1e9 bytes per second
    cublas_mib: float  # torch's workspace for the matrix products of one thread


CARDS = {
    card.name: card
    for card in (
        Card("3090", 24, 71, 936, 25, 12, 8.125),
        Card("4090", 24, 165, 1008, 25, 12, 8.125),
        Card("A100", 80, 312, 2039, 25, 300, 8.125),
        Card("H100", 80, 989, 3350, 50, 450, 32),
        Card("H200", 141, 989, 4800, 50, 450, 32),
    )
}


def card_named(name: str) -> Card:
    """The GPU with this name, in any spelling; raises UserError with the known names."""
    spelled = name.upper().replace("RTX", "").replace("NVIDIA", "").strip(" -_")
    for known, card in CARDS.items():
        if spelled == known.upper():
            return card
    raise UserError(f"no card named {name!r}; known are {', '.join(CARDS)}")


def card_like(device_name: str) -> Card | None:
    """The GPU whose name is part of torch's device name, e.g. `NVIDIA GeForce RTX 3090`; None for others."""
    return next((card for name, card in CARDS.items() if name in device_name.upper()), None)
