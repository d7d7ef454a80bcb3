"""Figures in; HTML, Markdown, LaTeX, charts and lines for the console out."""
