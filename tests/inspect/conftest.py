"""Fixtures that tests of this room share with those of another."""

from tests.prepare.conftest import source, square, write_label  # noqa: F401
