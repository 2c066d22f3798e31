"""The first load of an ONNX file, in a process of its own: an optimizer of ONNX Runtime that
crashes on a network ends that process, and not the one that made the file.

`python -m edgecompress.measure.trial` reads a `TrialRequest` as JSON from stdin, loads the file,
runs it once on random inputs where that is asked, and prints a `TrialAnswer`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from edgecompress.errors import EdgecompressError
from edgecompress.measure import runtime
from edgecompress.measure.feeds import random_feeds
from edgecompress.measure.requests import Failure, TrialAnswer, TrialRequest


def work(request: TrialRequest) -> TrialAnswer:
    """Load the model, and run it once."""
    loaded = runtime.load(Path(request.model), threads=1, provider=request.provider)
    if request.runs:
        loaded.execute(random_feeds(loaded, None, np.random.default_rng(0)))
    return {"warning": loaded.warning()}


def main() -> None:
    """One object in, one out; an error of ours becomes `{"error", "exit_code"}`."""
    answer: Failure | TrialAnswer
    try:
        answer = work(TrialRequest(**json.loads(sys.stdin.read())))
    except EdgecompressError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
