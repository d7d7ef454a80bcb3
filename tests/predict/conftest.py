"""Fixtures shared with the tests of inference."""

from tests.inference.conftest import images, middle, model, predictor  # noqa: F401
