"""The sample project of deploy/ci: every step of its workflow and of the action runs as written, in
a shell.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CI = Path(__file__).parents[2] / "deploy" / "ci"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the sample with the action where its workflow looks for it."""
    shutil.copytree(CI / "sample", tmp_path / "p")
    action = tmp_path / "p" / ".github" / "actions" / "edgecompress-bench"
    action.mkdir(parents=True)
    shutil.copy(CI / "action.yml", action)
    return tmp_path / "p"


def steps_of(project: Path, job: str, **changed: str) -> list[str]:
    """The shell commands of a job, with the steps of local actions inserted and their inputs filled
    in (`changed` overrides those of the workflow).
    """
    workflow = yaml.safe_load((project / ".github" / "workflows" / "latency.yml").read_text())
    commands = []
    for step in workflow["jobs"][job]["steps"]:
        # first, as on a fresh runner; the tests use what is installed here instead
        if step.get("name") == "Install":
            assert not commands
            assert step["run"].startswith("pip install edgecompress")
        elif "run" in step:
            commands.append(step["run"])
        elif step["uses"].startswith("./"):
            action = yaml.safe_load((project / step["uses"] / "action.yml").read_text())
            defaults = {
                name: str(field.get("default", "")) for name, field in action["inputs"].items()
            }
            given = {**defaults, **{k: str(v) for k, v in step.get("with", {}).items()}, **changed}
            assert set(given) == set(action["inputs"]), "an input that the action lacks"
            commands += [_filled(inner["run"], given) for inner in action["runs"]["steps"]]
    return commands


def _filled(text: str, given: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda match: given[match.group(1)], text)


def run(command: str, project: Path) -> subprocess.CompletedProcess[str]:
    """One step, as a runner runs it."""
    environment: dict[str, Any] = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(project / "summary.md"),
    }
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_action_passes_equal_models_and_writes_its_reports(project: Path) -> None:
    for command in steps_of(project, "action"):
        done = run(command, project)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "bytes: pass" in done.stdout
    assert "## edgecompress bench" in (project / "summary.md").read_text()
    assert "<testsuite" in (project / "edgecompress-bench.xml").read_text()


def test_the_action_fails_on_a_slower_model(project: Path) -> None:
    build, *check = steps_of(project, "action")
    assert (
        run(
            build.replace("build/model.onnx --layers 4", "build/model.onnx --layers 12"), project
        ).returncode
        == 0
    )
    codes = [run(command, project).returncode for command in check]
    assert codes == [0, 3], "installed, then a regression"
    assert "**fail**" in (project / "summary.md").read_text()


def test_plain_pytest_runs_the_same_check(project: Path) -> None:
    build, test = steps_of(project, "pytest")
    assert run(build, project).returncode == 0
    done = run(test, project)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert (
        run(
            build.replace("build/model.onnx --layers 4", "build/model.onnx --layers 12"), project
        ).returncode
        == 0
    )
    done = run(test, project)
    assert done.returncode == 1
    assert "regression: candidate" in done.stdout
