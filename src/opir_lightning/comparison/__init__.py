"""Compare finished runs: read them, group them over seeds, and write tables, plots and one page."""
