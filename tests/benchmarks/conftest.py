"""Fixtures that tests of this room share with those of another."""

from tests.evaluation.conftest import drawn  # noqa: F401
