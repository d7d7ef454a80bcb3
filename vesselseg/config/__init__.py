"""Config files: loaded, checked as a whole, completed from the schema."""
