"""The folder of a run: what is in it, when it may be used, and how a run goes on in it.

resolved.yaml  result.json  history.csv  log.jsonl  model.onnx  model-fp32.onnx  model.safetensors
report.html 01-train/ 02-simplify/ ...  a folder a stage; its stage.json is written last, so a stage
that has one is complete .before/  an earlier run of the folder, until the new one is whole
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecompress import files
from edgecompress.errors import UsageError
from edgecompress.run.schema import HistoryRow

FILES = (
    "resolved.yaml",
    "result.json",
    "report.html",
    "history.csv",
    "log.jsonl",
    "model.onnx",
    "names.json",
    "model-fp32.onnx",
    "model.safetensors",
)


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run. Folders of the stages called `stage_names` are its own."""

    root: Path
    stage_names: tuple[str, ...] = ()

    def stage(self, number: int, name: str) -> Path:
        """Folder of stage `number` (from 1)."""
        return self.root / f"{number:02d}-{name}"

    @property
    def aside(self) -> Path:
        """Where an earlier run of this folder waits until the new one is whole."""
        return self.root / ".before"

    def set_aside(self) -> None:
        """Put what an earlier run left in this folder aside, so that nothing of it can be taken for
        the new one's.

        What was aside already, behind a run that was stopped, stays there if it is whole and that
        run is not.
        """
        if (self.aside / "result.json").is_file() and not (self.root / "result.json").is_file():
            self._remove()
            return
        self.forget()
        parts = self._parts()
        if parts:
            self.aside.mkdir()
        for path in parts:
            path.rename(self.aside / path.name)

    def give_back(self) -> None:
        """Remove what the new run left, and put the earlier one back."""
        self._remove()
        for path in sorted(self.aside.iterdir()) if self.aside.is_dir() else []:
            path.rename(self.root / path.name)
        self.forget()
        if self.root.is_dir() and not any(self.root.iterdir()):
            self.root.rmdir()

    def forget(self) -> None:
        """The new run is whole: the earlier one goes."""
        shutil.rmtree(self.aside, ignore_errors=True)

    def begun(self) -> bool:
        """Has a stage of the present run completed?"""
        return any(self.root.glob("[0-9][0-9]-*/stage.json"))

    def _parts(self) -> list[Path]:
        ours = re.compile(rf"[0-9]{{2}}-({'|'.join(self.stage_names)})(-[0-9]+of[0-9]+)?")
        folders = [
            path for path in sorted(self.root.glob("[0-9][0-9]-*")) if ours.fullmatch(path.name)
        ]
        return [path for path in (*(self.root / name for name in FILES), *folders) if path.exists()]

    def _remove(self) -> None:
        for path in self._parts():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def log(self, event: str, **fields: object) -> None:
        """Append one event to `log.jsonl`."""
        files.append_line(
            self.root / "log.jsonl", {"time": round(time.time(), 3), "event": event, **fields}
        )

    def write_history(self, rows: Sequence[HistoryRow]) -> None:
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
        raise UsageError(
            f"output folder '{root}' is not empty: give another -o, --resume to go on, or "
            "--exist-ok to overwrite"
        )
    if resume and not (root / "resolved.yaml").is_file():
        raise UsageError(
            f"nothing to resume in '{root}': it has no resolved.yaml; give the -o of the run "
            "that was stopped"
        )
