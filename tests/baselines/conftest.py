"""Fixtures that tests of this room share with those of another."""

from tests.evaluation.conftest import drawn, mask_folder, probability_folder  # noqa: F401
