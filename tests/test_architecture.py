"""The directions between the rooms, the exact public API, and what may be imported at start-up."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgecompress

PACKAGE = Path(edgecompress.__file__).parent
ORDER = [
    "__version__",
    "errors",
    "interrupts",
    "units",
    "files",
    "download",
    "formats",
    "git",
    "pictures",
    "proportions",
    "core",
    "models",
    "data",
    "train",
    "methods",
    "measure",
    "export",
    "checkpoint",
    "run",
    "report",
    "online",
    "stages",
    "recipe",
    "prepare",
    "resolve",
    "pipeline",
    "compress",
    "lesson",
    "emulate",
    "cli",
    "pytest_plugin",
    "__main__",
]
"""A room may import those to its left, and itself."""


def imports(path: Path) -> set[str]:
    """Rooms of edgecompress that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("edgecompress")
        ):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "edgecompress"
                else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("edgecompress.")]
        found |= {name.split(".")[1] for name in names}
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_run_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for other in imports(path):
        assert ORDER.index(other) <= ORDER.index(room), f"{relative} imports {other}"


def test_core_imports_torch_only() -> None:
    allowed = {"torch", "edgecompress", *sys.stdlib_module_names}
    for path in (PACKAGE / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert {name.split(".")[0] for name in names} <= allowed, path


def test_train_never_imports_methods() -> None:
    for path in (PACKAGE / "train").glob("*.py"):
        assert "methods" not in imports(path)


def test_public_api_is_exact() -> None:
    assert edgecompress.__all__ == sorted(edgecompress.__all__)
    for name in edgecompress.__all__:
        assert getattr(edgecompress, name) is not None
    with pytest.raises(AttributeError):
        edgecompress.nothing_of_the_kind  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import edgecompress",
        "import edgecompress.cli.app",
        "import edgecompress.recipe",
        "import edgecompress.measure.latency",
    ],
)
def test_no_torch_at_start_up(code: str) -> None:
    """An edge device benches and predicts without torch; --help answers at once."""
    check = f"{code}\nimport sys\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_every_public_function_is_documented() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


@pytest.mark.parametrize(
    ("room", "foreign"),
    [
        (
            "edgecompress.emulate.session, edgecompress.cli.emulate, edgecompress.online.codec",
            ("torch", "grpc", "scapy"),
        ),
        ("edgecompress.emulate.traffic", ("torch", "grpc")),
        ("edgecompress.online.teacher, edgecompress.online.student", ("scapy", "mininet")),
    ],
)
def test_what_must_not_meet_in_one_process(room: str, foreign: tuple[str, ...]) -> None:
    """Root holds neither torch nor grpc; Scapy never shares a process with grpc."""
    code = f"import {room}, sys; print([name for name in {foreign!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ELSEWHERE = """
import importlib, os, pkgutil, sys
import psutil  # has what it needs of each system
GONE = {"resource", "fcntl", "pwd", "grp", "termios", "torch", "mininet", "scapy"}
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
for name in GONE:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Gone())
for name in ("sysconf", "sched_getaffinity", "getuid", "geteuid", "getpgid", "killpg"):
    if hasattr(os, name):
        delattr(os, name)
import edgecompress
count = 0
for module in pkgutil.walk_packages(edgecompress.__path__, "edgecompress."):
    if module.name.split(".")[1] in ("emulate", "__main__"):
        continue
    try:
        importlib.import_module(module.name)
        count += 1
    except ModuleNotFoundError as error:
        assert error.name == "torch", (module.name, error)
from edgecompress.measure import machine
hardware = machine.hardware()
assert hardware["cores"] >= 1 and hardware["memory_bytes"] > 0, hardware
assert machine.peak_rss_bytes() > 0
print(count)
"""


def test_the_base_install_imports_where_unix_modules_are_missing() -> None:
    """As on Windows: no resource, no os.sysconf; and without torch. Emulations need Linux."""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60
