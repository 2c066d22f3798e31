"""One run: its state, what a stage is, what is kept on disk, its directory and its result."""
