"""A trained checkpoint in, a Hugging Face folder out."""
