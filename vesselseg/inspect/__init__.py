"""A dataset folder looked at: checks that find what is wrong with it, and a page to browse it."""
