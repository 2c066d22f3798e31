"""The command line: `app.py` registers, one file a verb; heavy imports stay inside the commands."""
