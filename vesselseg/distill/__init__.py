"""Distil a model for fixed phrases: SAM2 alone, with prompts learnt from the language model's."""
