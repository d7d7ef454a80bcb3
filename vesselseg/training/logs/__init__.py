"""Logs of trainings -> what happened in them."""
