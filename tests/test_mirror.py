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

TESTED_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "__init__.py": ("test_architecture.py",),
    "__main__.py": ("test_compress.py",),
    "cli/app.py": (
        "cli/test_cli.py",
        "cli/test_options.py",
    ),
    "cli/bench.py": (
        "cli/test_ship.py",
        "measure/test_regression.py",
        "test_compress.py",
    ),
    "cli/checkpoints.py": (
        "cli/test_ship.py",
        "cli/test_prune.py",
    ),
    "cli/doctor.py": ("cli/test_cli.py",),
    "cli/dry_run.py": ("test_resolve.py",),
    "cli/emulate.py": (
        "emulate/test_emulate.py",
        "emulate/test_topology.py",
    ),
    "cli/emulate_options.py": ("emulate/test_emulate.py",),
    "cli/emulation.py": ("emulate/test_emulate.py",),
    "cli/grouped.py": ("cli/test_options.py",),
    "cli/launch.py": (
        "cli/test_cli.py",
        "test_compress.py",
    ),
    "cli/lists.py": ("cli/test_cli.py",),
    "cli/online.py": ("online/test_commands.py",),
    "cli/parsed.py": ("cli/test_options.py",),
    "cli/predict.py": (
        "cli/test_ship.py",
        "test_compress.py",
    ),
    "cli/report.py": (
        "cli/test_distill.py",
        "test_compress.py",
    ),
    "cli/run.py": (
        "cli/test_cli.py",
        "cli/test_distill.py",
    ),
    "cli/show.py": (
        "cli/test_prune.py",
        "cli/test_merge.py",
        "test_compress.py",
    ),
    "cli/verbs.py": (
        "cli/test_options.py",
        "cli/test_ship.py",
    ),
    "core/calls.py": ("core/test_rules.py", "core/test_mixing.py"),
    "core/labels.py": (
        "core/test_graph.py",
        "core/test_laws.py",
        "core/test_rules.py",
    ),
    "core/operations.py": ("core/test_rules.py",),
    "emulate/backends.py": ("emulate/test_emulate.py",),
    "emulate/capture.py": ("emulate/test_emulate.py",),
    "emulate/certificates.py": ("emulate/test_emulate.py",),
    "emulate/cgroups.py": ("emulate/test_emulate.py",),
    "emulate/faults.py": ("emulate/test_emulate.py",),
    "emulate/outcome.py": ("emulate/test_emulate.py",),
    "emulate/probe.py": ("emulate/test_emulate.py",),
    "emulate/reading.py": ("emulate/test_traffic.py",),
    "emulate/report.py": ("emulate/test_emulate.py",),
    "emulate/roles.py": ("emulate/test_emulate.py",),
    "emulate/schema.py": ("emulate/test_emulate.py",),
    "emulate/session.py": ("emulate/test_emulate.py",),
    "emulate/shell.py": ("emulate/test_emulate.py",),
    "export/calibration.py": ("export/test_quantize.py",),
    "export/in_float.py": (
        "export/test_formats.py",
        "export/test_quantize.py",
    ),
    "export/integer.py": ("export/test_lean.py",),
    "export/narrow.py": ("export/test_low_bits.py",),
    "lesson/attend.py": ("online/test_commands.py",),
    "lesson/networks.py": ("online/test_lesson.py",),
    "lesson/serve.py": ("online/test_commands.py",),
    "lesson/settings.py": ("online/test_resume.py", "online/test_commands.py"),
    "measure/names.py": ("export/test_lean.py",),
    "measure/processes.py": ("measure/test_comparison.py",),
    "measure/requests.py": ("measure/test_worker.py",),
    "measure/score.py": ("cli/test_ship.py", "measure/test_regression.py"),
    "measure/trial.py": ("measure/test_trials.py",),
    "online/checks.py": ("online/test_lesson.py",),
    "online/connection.py": ("online/test_lesson.py",),
    "online/exchanges/__init__.py": ("online/test_lesson.py",),
    "online/exchanges/base.py": ("online/test_lesson.py",),
    "online/exchanges/inputs.py": ("online/test_lesson.py",),
    "online/exchanges/steps.py": ("online/test_lesson.py",),
    "online/mutual.py": ("online/test_lesson.py",),
    "online/plan.py": ("online/test_lesson.py",),
    "online/progress.py": ("online/test_lesson.py",),
    "online/session.py": ("online/test_lesson.py",),
    "online/teacher.py": ("online/test_lesson.py",),
    "pipeline.py": (
        "run/test_resume.py",
        "run/test_directory.py",
        "test_compress.py",
    ),
    "prepare.py": (
        "cli/test_distill.py",
        "test_compress.py",
    ),
    "report/ci.py": (
        "measure/test_regression.py",
        "deploy/test_ci.py",
    ),
    "report/curve.py": ("cli/test_curve.py",),
    "report/pages.py": ("test_compress.py",),
    "run/context.py": ("run/test_resume.py",),
    "run/result.py": (
        "test_compress.py",
        "cli/test_merge.py",
    ),
    "run/schema.py": ("test_compress.py",),
    "run/sections.py": ("test_compress.py", "cli/test_merge.py"),
    "run/stage.py": ("stages/test_plugin.py",),
    "run/state.py": ("run/test_store.py",),
    "stages/__init__.py": (
        "run/test_resume.py",
        "stages/test_plugin.py",
    ),
    "stages/auto/__init__.py": ("cli/test_auto.py",),
    "stages/auto/work.py": ("cli/test_auto.py",),
    "stages/budgets.py": ("cli/test_prune.py",),
    "stages/candidates.py": ("stages/test_common.py",),
    "stages/checkpoints.py": (
        "cli/test_merge.py",
        "cli/test_distill.py",
    ),
    "stages/compare/__init__.py": (
        "run/test_resume.py",
        "cli/test_merge.py",
    ),
    "stages/compare/work.py": (
        "run/test_resume.py",
        "cli/test_merge.py",
    ),
    "stages/contest/__init__.py": ("stages/test_contest.py",),
    "stages/contest/work.py": ("stages/test_contest.py",),
    "stages/distill/__init__.py": (
        "run/test_resume.py",
        "cli/test_distill.py",
    ),
    "stages/distill/work.py": (
        "run/test_resume.py",
        "cli/test_distill.py",
    ),
    "stages/export/__init__.py": (
        "run/test_resume.py",
        "cli/test_ship.py",
    ),
    "stages/export/work.py": (
        "run/test_resume.py",
        "cli/test_ship.py",
    ),
    "stages/fields.py": ("test_recipe.py",),
    "stages/gradual/__init__.py": (
        "run/test_resume.py",
        "cli/test_prune.py",
    ),
    "stages/gradual/work.py": (
        "run/test_resume.py",
        "cli/test_prune.py",
    ),
    "stages/load.py": (
        "run/test_resume.py",
        "test_compress.py",
    ),
    "stages/measure/__init__.py": (
        "run/test_resume.py",
        "test_compress.py",
    ),
    "stages/measure/work.py": (
        "stages/test_decisions.py",
        "test_compress.py",
    ),
    "stages/merge/__init__.py": (
        "run/test_resume.py",
        "cli/test_merge.py",
    ),
    "stages/merge/gating.py": (
        "run/test_resume.py",
        "cli/test_merge.py",
    ),
    "stages/merge/work.py": (
        "run/test_resume.py",
        "cli/test_merge.py",
    ),
    "stages/plan/__init__.py": (
        "run/test_resume.py",
        "test_compress.py",
    ),
    "stages/plan/outlook.py": (
        "test_resolve.py",
        "test_compress.py",
    ),
    "stages/plan/work.py": (
        "run/test_resume.py",
        "test_compress.py",
    ),
    "stages/profile.py": (
        "run/test_resume.py",
        "cli/test_prune.py",
    ),
    "stages/prune/__init__.py": (
        "run/test_resume.py",
        "cli/test_prune.py",
    ),
    "stages/prune/work.py": (
        "run/test_resume.py",
        "cli/test_prune.py",
    ),
    "stages/qat/__init__.py": (
        "run/test_resume.py",
        "cli/test_ship.py",
    ),
    "stages/qat/work.py": (
        "run/test_resume.py",
        "cli/test_ship.py",
    ),
    "stages/quantize/__init__.py": (
        "run/test_resume.py",
        "cli/test_ship.py",
    ),
    "stages/quantize/choose.py": ("stages/test_decisions.py",),
    "stages/quantize/int8.py": ("cli/test_ship.py",),
    "stages/quantize/work.py": (
        "stages/test_decisions.py",
        "test_compress.py",
    ),
    "stages/search/__init__.py": (
        "run/test_resume.py",
        "test_compress.py",
    ),
    "stages/search/work.py": (
        "run/test_resume.py",
        "test_compress.py",
    ),
    "stages/shrink.py": (
        "run/test_resume.py",
        "cli/test_prune.py",
    ),
    "stages/simplify/__init__.py": (
        "run/test_resume.py",
        "test_compress.py",
    ),
    "stages/simplify/work.py": (
        "run/test_resume.py",
        "test_compress.py",
    ),
    "stages/sparsify/__init__.py": ("cli/test_sparse.py",),
    "stages/sparsify/work.py": ("cli/test_sparse.py",),
    "stages/teacher.py": (
        "run/test_resume.py",
        "cli/test_distill.py",
    ),
    "stages/train/__init__.py": (
        "run/test_resume.py",
        "test_compress.py",
    ),
    "stages/train/work.py": (
        "run/test_resume.py",
        "test_compress.py",
    ),
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
