"""The tests mirror the package: `edgecompress/a/b.py` is tested by `tests/a/test_b.py`, or by the
files that this table names.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import edgecompress

PACKAGE = Path(edgecompress.__file__).parent
TESTS = Path(__file__).parent

LESSON = ("online/test_lesson.py",)
COMPRESS = ("test_compress.py",)
EMULATE = ("emulate/test_emulate.py",)

TESTED_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "__init__.py": ("test_architecture.py",),
    "__main__.py": ("test_compress.py",),
    "cli/app.py": ("cli/test_cli.py",),
    "cli/bench.py": ("cli/test_ship.py", "measure/test_regression.py", "test_compress.py"),
    "cli/compare.py": ("cli/test_merge.py",),
    "cli/compress.py": COMPRESS,
    "cli/console.py": ("cli/test_cli.py",),
    "cli/doctor.py": ("cli/test_cli.py",),
    "cli/emulate.py": ("emulate/test_emulate.py", "emulate/test_topology.py"),
    "cli/launch.py": ("cli/test_cli.py", "test_compress.py"),
    "cli/lists.py": ("cli/test_cli.py",),
    "cli/online.py": LESSON,
    "cli/predict.py": ("cli/test_ship.py", "test_compress.py"),
    "cli/recipe.py": ("cli/test_cli.py",),
    "cli/report.py": ("cli/test_distill.py", "test_compress.py"),
    "cli/run.py": ("cli/test_cli.py", "cli/test_distill.py"),
    "cli/verbs.py": ("cli/test_cli.py", "cli/test_distill.py"),
    "core/labels.py": ("core/test_graph.py", "core/test_laws.py", "core/test_rules.py"),
    "core/operations.py": ("core/test_rules.py",),
    "emulate/capture.py": EMULATE,
    "emulate/certificates.py": EMULATE,
    "emulate/links.py": ("emulate/test_emulate.py", "emulate/test_topology.py"),
    "emulate/network.py": EMULATE,
    "emulate/probe.py": EMULATE,
    "emulate/session.py": ("emulate/test_emulate.py", "emulate/test_topology.py"),
    "emulate/shell.py": EMULATE,
    "export/onnx.py": ("export/test_export.py",),
    "lesson.py": LESSON,
    "measure/cost.py": ("core/test_price.py", "measure/test_measure.py"),
    "measure/machine.py": ("measure/test_measure.py",),
    "measure/products.py": ("measure/test_regression.py",),
    "measure/profile.py": ("measure/test_regression.py",),
    "measure/runtime.py": ("export/test_export.py", "measure/test_regression.py"),
    "measure/worker.py": ("measure/test_regression.py",),
    "methods/scores.py": ("cli/test_prune.py", "train/test_fit.py"),
    "online/line.py": LESSON,
    "online/mutual.py": LESSON,
    "online/pupil.py": LESSON,
    "online/roster.py": LESSON,
    "online/secure.py": LESSON,
    "online/session.py": LESSON,
    "online/shelf.py": LESSON,
    "online/student.py": LESSON,
    "online/teacher.py": LESSON,
    "online/weights.py": LESSON,
    "online/wire.py": ("online/test_codec.py", "online/test_lesson.py"),
    "pipeline.py": ("test_compress.py", "test_rundir.py"),
    "prepare.py": ("cli/test_distill.py", "cli/test_merge.py"),
    "pytest_plugin.py": ("deploy/test_ci.py",),
    "report/ci.py": ("deploy/test_ci.py", "measure/test_regression.py"),
    "report/emulation.py": EMULATE,
    "report/html.py": COMPRESS,
    "report/plots.py": COMPRESS,
    "result.py": COMPRESS,
    "settings.py": ("stages/test_decisions.py", "test_recipe.py"),
    "stages/common.py": COMPRESS,
    "stages/compare.py": ("cli/test_merge.py", "methods/test_compare.py"),
    "stages/distill.py": ("cli/test_distill.py",),
    "stages/goal.py": ("cli/test_prune.py",),
    "stages/gradual.py": ("cli/test_prune.py",),
    "stages/int8.py": ("cli/test_ship.py",),
    "stages/measure.py": ("stages/test_decisions.py", "test_compress.py"),
    "stages/merge.py": ("cli/test_merge.py",),
    "stages/plan.py": COMPRESS,
    "stages/profile.py": ("cli/test_prune.py",),
    "stages/prune.py": ("cli/test_prune.py", "test_compress.py"),
    "stages/search.py": COMPRESS,
    "stages/ship.py": ("cli/test_ship.py", "stages/test_decisions.py"),
    "stages/simplify.py": ("cli/test_prune.py", "test_compress.py"),
    "stages/teacher.py": ("cli/test_distill.py", "test_compress.py"),
    "train/batches.py": ("data/test_lazy.py", "train/test_fit.py"),
    "train/freeze.py": ("train/test_together.py",),
    "train/history.py": ("test_compress.py", "train/test_fit.py"),
    "train/init.py": ("train/test_fit.py",),
    "train/schedule.py": ("train/test_together.py",),
    "train/settings.py": ("train/test_fit.py", "train/test_together.py"),
}


def own_tests(module: str) -> Path:
    """`a/b.py` -> `tests/a/test_b.py`."""
    path = Path(module)
    return TESTS / path.parent / f"test_{path.name}"


def modules() -> list[str]:
    """Every module that defines anything; an `__init__` that only imports is none."""
    return [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py" or defines(path)
    ]


def defines(path: Path) -> bool:
    nodes = ast.parse(path.read_text()).body
    return any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in nodes)


@pytest.mark.parametrize("module", modules())
def test_every_module_has_tests(module: str) -> None:
    assert own_tests(module).is_file() or module in TESTED_ELSEWHERE, (
        f"nothing tests {module}: add tests/{own_tests(module).relative_to(TESTS)}, or a row to "
        "TESTED_ELSEWHERE with the files that test it"
    )


@pytest.mark.parametrize("module", TESTED_ELSEWHERE)
def test_no_row_is_superfluous(module: str) -> None:
    assert module in modules(), f"there is no module {module}: remove its row"
    assert not own_tests(module).is_file(), f"{module} has its own test file: remove its row"
    assert TESTED_ELSEWHERE[module], f"the row of {module} names no test file"
    for name in TESTED_ELSEWHERE[module]:
        assert (TESTS / name).is_file(), f"the row of {module} names {name}, which does not exist"


def test_rows_are_sorted() -> None:
    assert list(TESTED_ELSEWHERE) == sorted(TESTED_ELSEWHERE)
