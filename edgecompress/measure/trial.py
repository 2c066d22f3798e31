"""The first load of an ONNX file, in a process of its own: an optimizer of ONNX Runtime that
crashes on a network ends that process, and not the one that made the file.

`python -m edgecompress.measure.trial` reads a `TrialRequest` as JSON from each line of stdin, loads
the file, runs it once on random inputs where that is asked, and prints a `TrialAnswer`.
"""

from __future__ import annotations

import json
import os
import signal
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
    """One object a line in, one a line out, until stdin ends; an error of ours becomes
    `{"error", "exit_code"}`. What the runtime prints goes to stderr.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        answers.write(json.dumps(_answer(TrialRequest(**json.loads(line)))) + "\n")
        answers.flush()


def _answer(request: TrialRequest) -> Failure | TrialAnswer:
    try:
        os.chdir(request.folder)
        return work(request)
    except EdgecompressError as error:
        return {"error": str(error), "exit_code": error.exit_code}


if __name__ == "__main__":
    main()
