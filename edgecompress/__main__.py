"""`python -m edgecompress` is the command `edgecompress`, also under `torchrun -m`."""

from edgecompress.cli.app import main

if __name__ == "__main__":
    main()
