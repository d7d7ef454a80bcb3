"""Metrics, threshold search, panels and reports."""
