from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from vesselseg.models.checkpoints.base_folder import mean_rows
from vesselseg.models.checkpoints.write_published import put_rows
from vesselseg.models.new_tokens import NewTokens

HIDDEN, START = 8, 20


def new_tokens(seed: int = 0) -> NewTokens:
    tokens = NewTokens(START, HIDDEN)
    torch.manual_seed(seed)
    with torch.no_grad():
        tokens.embedding.normal_()
        tokens.head.normal_()
    return tokens


@pytest.fixture(params=[START, START + 2, START + 5, START + 12], ids=["shorter", "half", "exact", "padded"])
def rows(request: pytest.FixtureRequest) -> int:
    """Rows of the frozen tables: none for the new tokens, some, all, or more behind them (stale or padding)."""
    return request.param


def test_embeddings_are_those_of_a_resized_table(rows: int) -> None:
    tokens, table = new_tokens(), nn.Embedding(rows, HIDDEN)
    resized = put_rows(table.weight, tokens.embedding, START)
    ids = torch.randint(len(resized), (3, 40), generator=torch.Generator().manual_seed(1))
    ids[0, :5] = torch.arange(START, START + 5)
    assert torch.equal(tokens.embed(table, ids), functional.embedding(ids, resized))


def test_logits_are_those_of_a_resized_head(rows: int) -> None:
    tokens, head = new_tokens(), nn.Linear(HIDDEN, rows, bias=False)
    resized = put_rows(head.weight, tokens.head, START)
    hidden = torch.randn(2, 7, HIDDEN)
    logits = tokens.logits(head, hidden)
    assert logits.shape == (2, 7, max(rows, START + 5))
    torch.testing.assert_close(logits, functional.linear(hidden, resized))


def test_only_the_rows_that_were_used_learn(rows: int) -> None:
    tokens, table, head = new_tokens(), nn.Embedding(rows, HIDDEN), nn.Linear(HIDDEN, rows, bias=False)
    table.requires_grad_(False)
    head.requires_grad_(False)
    ids = torch.tensor([[1, START, START, START + 3, 2]])
    embedded = tokens.embed(table, ids)
    embedded.backward(torch.ones_like(embedded))
    assert tokens.embedding.grad[:, 0].tolist() == [2, 0, 0, 1, 0]
    logits = tokens.logits(head, torch.randn(4, HIDDEN))
    functional.cross_entropy(logits, torch.tensor([START, 1, 2, 3])).backward()
    assert (tokens.head.grad != 0).any(dim=1).all()  # every row takes part in the softmax
    assert table.weight.grad is None and head.weight.grad is None


def test_the_tables_type_decides(rows: int) -> None:
    tokens = new_tokens()
    table = nn.Embedding(rows, HIDDEN).bfloat16()
    head = nn.Linear(HIDDEN, rows, bias=False).bfloat16()
    embedded = tokens.embed(table, torch.tensor([1, START]))
    assert embedded.dtype == torch.bfloat16
    assert tokens.logits(head, embedded).dtype == torch.bfloat16


def test_seg_is_the_first_of_five() -> None:
    assert new_tokens().seg_id == START and new_tokens().count == 5


def test_fresh_rows_lie_around_the_tables_mean() -> None:
    table = torch.randn(3000, HIDDEN, generator=torch.Generator().manual_seed(0)) * 2 + 5
    fresh = mean_rows(table, 5, chunk=700)
    assert fresh.shape == (5, HIDDEN) and fresh.dtype == table.dtype
    assert ((fresh - table.mean(0)).abs() < 4 * 0.1 * 2).all()
    assert torch.pdist(fresh).min() > 0.05  # apart from each other
    assert torch.equal(fresh, mean_rows(table, 5, chunk=64))
    torch.testing.assert_close(mean_rows(table[:1], 3), table[:1].expand(3, -1))
