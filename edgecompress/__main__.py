"""The command `edgecompress`; `python -m edgecompress` is the same, also under `torchrun -m`."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the command `edgecompress`: Ctrl-C ends it also while it is imported."""
    try:
        from edgecompress.cli import app
    except KeyboardInterrupt:
        sys.exit(130)
    app.main()


if __name__ == "__main__":
    main()
