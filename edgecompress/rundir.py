"""The folder of a run: what is in it, when it may be used, and how a run goes on in it.

resolved.yaml  result.json  history.csv  log.jsonl  model.onnx  model-fp32.onnx  model.safetensors  report.html
01-train/ 02-simplify/ ...  a folder a stage; its stage.json is written last, so a stage that has one is complete
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress import files
from edgecompress.errors import UsageError


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run."""

    root: Path

    def stage(self, number: int, name: str) -> Path:
        """Folder of stage `number` (from 1)."""
        return self.root / f"{number:02d}-{name}"

    def clear(self) -> None:
        """Remove what an earlier run said in this folder, so that nothing of it can be taken for the new one's."""
        names = ("result.json", "report.html", "history.csv", "log.jsonl", "model.onnx", "model-fp32.onnx", "model.safetensors")
        for path in (*(self.root / name for name in names), *self.root.glob("[0-9][0-9]-*/stage.json")):
            path.unlink(missing_ok=True)

    def log(self, event: str, **fields: Any) -> None:
        """Append one event to `log.jsonl`."""
        files.append_line(self.root / "log.jsonl", {"time": round(time.time(), 3), "event": event, **fields})

    def write_history(self, rows: list[Mapping[str, Any]]) -> None:
        """Write `history.csv`."""
        files.write_csv(self.root / "history.csv", rows)


def default_root(command: str, model: str) -> Path:
    """`runs/<verb>-<model>-<time>`."""
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(model).stem or model)
    return Path("runs") / f"{command}-{safe}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_root(root: Path, *, resume: bool, exist_ok: bool) -> None:
    """Raises `UsageError` when `root` is in use, or cannot be resumed. Writes nothing."""
    if root.exists() and not root.is_dir():
        raise UsageError(f"output '{root}' is a file: give a folder with -o")
    used = root.is_dir() and any(root.iterdir())
    if used and not resume and not exist_ok:
        raise UsageError(f"output folder '{root}' is not empty: give another -o, --resume to go on, or --exist-ok to overwrite")
    if resume and not (root / "resolved.yaml").is_file():
        raise UsageError(f"nothing to resume in '{root}': it has no resolved.yaml; give the -o of the run that was stopped")
