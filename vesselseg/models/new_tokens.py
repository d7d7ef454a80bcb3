"""Embedding and head rows of the new tokens, separate from the frozen tables.

Resizing the tables of an 8B model copies 1.09 G parameters, and training the whole tables for five new rows doubles the
optimizer's memory. Here the tables stay frozen and the five rows are parameters of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vesselseg.models.sa2va_config import NEW_TOKENS


class NewTokens(nn.Module):
    """Rows for consecutive token ids from `start` on; the tables may end before `start` or hold stale rows there."""

    def __init__(self, start: int, hidden_size: int) -> None:
        super().__init__()
        self.start = start
        self.count = len(NEW_TOKENS)
        self.embedding = nn.Parameter(torch.zeros(self.count, hidden_size))
        self.head = nn.Parameter(torch.zeros(self.count, hidden_size))

    @property
    def seg_id(self) -> int:
        """Id of [SEG], the first new token."""
        return self.start

    def embed(self, table: Any, input_ids: Tensor, on_host: Tensor | None = None) -> Tensor:
        """input_ids: (...) int64. Returns (..., hidden): new rows for new ids, the table's rows for all others.

        on_host: the same ids in main memory, for a table that is there (see `host_embedding`).
        """
        ids = input_ids if on_host is None else on_host
        # The table may have no rows for new ids, so they look up row 0, whose values torch.where discards below.
        known = table(ids.masked_fill(self._is_new(ids), 0).to(table.weight.device, non_blocking=True))
        rows = self.embedding[(input_ids - self.start).clamp(0, self.count - 1)]
        known = known.to(rows.device, non_blocking=True)
        return torch.where(self._is_new(input_ids).unsqueeze(-1), rows.to(known.dtype), known)

    def _is_new(self, ids: Tensor) -> Tensor:
        return (ids >= self.start) & (ids < self.start + self.count)

    def logits(self, head: nn.Linear, hidden: Tensor) -> Tensor:
        """hidden: (..., hidden). Returns (..., vocabulary), the new ids' columns computed from the new rows."""
        frozen = head(hidden)  # (..., rows of the table)
        new = hidden @ self.head.to(hidden.dtype).T
        # The table's own rows for new ids, if it has any, are stale; rows above them (padding) are kept.
        return torch.cat([frozen[..., : self.start], new, frozen[..., self.start + self.count :]], dim=-1)
