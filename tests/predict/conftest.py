"""Fixtures that tests of this room share with those of another."""

from tests.inference.conftest import images, middle, model, predictor  # noqa: F401
