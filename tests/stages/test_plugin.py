"""A new stage is one file and one line: the page of the documentation, followed to the letter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "add-a-stage.md"
REGISTER = """
from edgecompress.stages import STAGES
from average import AverageStage
STAGES.append(AverageStage)
from edgecompress.cli.app import main
main()
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", REGISTER, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_stage_of_the_page_runs_and_resumes(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    recipe = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    (tmp_path / "average.py").write_text(code)
    (tmp_path / "recipe.yaml").write_text(recipe)
    values = ("model=lenet5", "stages.0.epochs=1", "stages.1.epochs=2", "threads=1")
    quick = [word for value in values for word in ("--set", value)]
    done = run(tmp_path, "run", "recipe.yaml", *quick, "-o", "run", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["name"] for row in result["stages"]] == ["train", "average", "export fp32"]
    assert result["artifact"] == "model-fp32.onnx"
    again = run(tmp_path, "run", "recipe.yaml", *quick, "-o", "run", "--resume", "--json")
    assert again.returncode == 0, again.stderr
    wrong = run(tmp_path, "run", "recipe.yaml", "--set", "stages.1.latest=2")
    assert wrong.returncode == 2
    assert "stages.1.latest: unknown key" in wrong.stderr
