"""Graphics cards by name: what the estimates of time and memory need to know of each.

Sources: NVIDIA's datasheets (GA102 and AD102 whitepapers; A100, H100 and H200 datasheets), dense bf16 figures with
float32 accumulation. PCIe and NVLink are half of the datasheets' figure for both directions, PCIe less protocol.
"""

from __future__ import annotations

from dataclasses import dataclass

from vesselseg.errors import UserError


@dataclass(frozen=True)
class Card:
    """gib: memory. tflops: dense bf16, 1e12 per second. memory_gbs, host_gbs, peer_gbs: 1e9 bytes per second of its own
    memory, to main memory, and to other GPUs of the machine. cublas_mib: torch's workspace for one thread's products.
    """

    name: str
    gib: float
    tflops: float
    memory_gbs: float
    host_gbs: float
    peer_gbs: float
    cublas_mib: float


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
    """The card of that name, however written; raises UserError with the known names."""
    wanted = name.upper().replace("RTX", "").replace("NVIDIA", "").strip(" -_")
    for known, card in CARDS.items():
        if wanted == known.upper():
            return card
    raise UserError(f"no card named {name!r}; known are {', '.join(CARDS)}")


def card_like(device_name: str) -> Card | None:
    """The card whose name stands in what torch calls a device, e.g. `NVIDIA GeForce RTX 3090`; None for others."""
    return next((card for name, card in CARDS.items() if name in device_name.upper()), None)
