"""One self-contained page for each run."""
