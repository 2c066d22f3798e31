"""The sample project of deploy/ci: every step of its workflow and of the action runs as written, in
a shell.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True)
class Step:
    """A shell script, and the variables that the step gives it."""

    script: str
    variables: dict[str, str] = field(default_factory=dict)

    def replace(self, old: str, new: str) -> Step:
        return replace(self, script=self.script.replace(old, new))


def steps_of(project: Path, job: str, **changed: str) -> list[Step]:
    """The shell scripts of a job, with the steps of local actions inserted and their inputs filled
    in (`changed` overrides those of the workflow).
    """
    workflow = yaml.safe_load((project / ".github" / "workflows" / "latency.yml").read_text())
    steps = []
    for step in workflow["jobs"][job]["steps"]:
        # first, as on a fresh runner; the tests use what is installed here instead
        if step.get("name") == "Install":
            assert not steps
            assert step["run"].startswith("pip install edgecompress")
        elif "run" in step:
            steps.append(Step(step["run"]))
        elif step["uses"].startswith("./"):
            action = yaml.safe_load((project / step["uses"] / "action.yml").read_text())
            defaults = {
                name: str(field.get("default", "")) for name, field in action["inputs"].items()
            }
            given = {**defaults, **{k: str(v) for k, v in step.get("with", {}).items()}, **changed}
            assert set(given) == set(action["inputs"]), "an input that the action lacks"
            steps += [
                Step(
                    inner["run"],
                    {name: _filled(value, given) for name, value in inner["env"].items()},
                )
                for inner in action["runs"]["steps"]
            ]
        else:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"]), "pinned"
    return steps


def _filled(text: str, given: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda match: given[match.group(1)], text)


def run(step: Step, project: Path) -> subprocess.CompletedProcess[str]:
    """One step, as a runner runs it."""
    assert "${{" not in step.script, "what a workflow fills into a script may run as code"
    environment: dict[str, Any] = {
        **os.environ,
        **step.variables,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(project / "summary.md"),
    }
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        ["bash", "-e", "-c", step.script],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_no_input_of_the_action_runs_as_code(project: Path) -> None:
    """Text from a pull request may become an input: it is one word to the command."""
    attack = '"; touch ran; echo "$(touch ran)'
    *_, check = steps_of(project, "action", candidate=attack, options=f"--strict {attack} *")
    done = run(check, project)
    assert done.returncode == 2, done.stdout + done.stderr
    assert not (project / "ran").exists()


def test_the_action_passes_equal_models_and_writes_its_reports(project: Path) -> None:
    for step in steps_of(project, "action"):
        done = run(step, project)
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
    codes = [run(step, project).returncode for step in check]
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
