"""The first load of an ONNX file, in a process of its own: an optimizer of ONNX Runtime that
crashes on a network ends that process, and not the one that made the file.

`python -m edgecompress.measure.trial` reads a `TrialRequest` as JSON from stdin, loads the file,
runs it once on random inputs, and prints `{}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from edgecompress.errors import EdgecompressError
from edgecompress.measure import runtime
from edgecompress.measure.requests import Failure, TrialRequest


def work(request: TrialRequest) -> None:
    """Load the model, and run it once."""
    loaded = runtime.load(Path(request.model), threads=1)
    loaded.execute(loaded.random_feeds(None, np.random.default_rng(0)))


def main() -> None:
    """One object in, one out; an error of ours becomes `{"error", "exit_code"}`."""
    answer: Failure | dict[str, str] = {}
    try:
        work(TrialRequest(**json.loads(sys.stdin.read())))
    except EdgecompressError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
