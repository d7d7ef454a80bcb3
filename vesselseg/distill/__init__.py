"""A big model -> a small one for fixed phrases: SAM2 alone, its prompts learnt from the language model's."""
