"""Writers of results: HTML, Markdown, LaTeX, charts, console."""
