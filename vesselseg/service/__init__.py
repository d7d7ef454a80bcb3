"""Predictions over HTTP: uploads in, probability maps out; many clients share one model."""
