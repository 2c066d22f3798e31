"""Fixtures for all tests: quiet threads, no leaks of environment or threads, small trained
networks, real Chromium.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "edgecompress",
    deadline=None,
    max_examples=10,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("edgecompress")
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = (
    "0"  # its handlers abort children of a process in which it has run
)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="edgecompress-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
SPARE_S = 30
"""Seconds that a test past its limit, and workers beside one that died, still get."""
torch.set_num_threads(1 if os.environ.get("PYTEST_XDIST_WORKER") else 2)


SHARED = {
    *("compressed", "trained", "parents", "formats", "found", "oldest_here", "uninterrupted"),
    *("small", "files", "fp32", "int8", "sparse", "plain", "drawn"),
}
"""Fixtures of modules that take long."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share an expensive fixture go to one worker (`--dist loadgroup`), and these groups
    first: one that begins last runs alone.
    """
    for item in items:
        shared = SHARED & set(getattr(item, "fixturenames", ()))
        if shared:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.name}-{sorted(shared)[0]}"))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_collection_finish() -> None:
    """What was imported stays; looking through it for garbage takes 3 % of the whole time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


NICE = 10
"""Of workers beside the one that emulates, whose timers must not wait for them."""


def yield_to_emulations(item: pytest.Item) -> None:
    """Run a test, and what it starts, behind emulations; only root may come to the front again."""
    if os.environ.get("PYTEST_XDIST_WORKER") and os.geteuid() == 0:
        group = item.get_closest_marker("xdist_group")
        emulates = group is not None and group.args == ("emulate",)
        os.setpriority(os.PRIO_PROCESS, 0, 0 if emulates else NICE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A second time limit behind that of pytest-timeout, whose thread needs the interpreter's lock:
    this one needs nothing.
    """
    yield_to_emulations(item)
    mark = item.get_closest_marker("timeout")
    limit = float(mark.args[0]) if mark is not None else float(str(item.config.getini("timeout")))
    faulthandler.dump_traceback_later(limit + SPARE_S, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """When a worker dies the suite ends (--max-worker-restart=0); workers that are still in a long
    test then are not waited for.
    """
    if error is None:
        return
    others = [gateway for gateway in node.nodemanager.group if gateway is not node.gateway]

    def end() -> None:
        for gateway in others:
            gateway._io.popen.kill()  # execnet has no public way to end a worker at once

    timer = threading.Timer(SPARE_S, end)
    timer.daemon = True
    timer.start()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """A test that leaves an environment variable or a running thread behind fails."""
    environment, threads, count = (
        dict(os.environ),
        set(threading.enumerate()),
        torch.get_num_threads(),
    )
    yield
    torch.set_num_threads(
        count
    )  # a run sets its own; several processes with several threads each stand in each other's way
    changed = {k for k in {*environment, *os.environ} if environment.get(k) != os.environ.get(k)}
    changed = {
        k
        for k in changed
        if k != "PYTEST_CURRENT_TEST" and not k.startswith(("KMP_", "TORCHINDUCTOR_"))
    }  # set by libraries
    left = [t for t in threading.enumerate() if t not in threads and not t.daemon and t.is_alive()]
    assert not changed, f"environment changed: {changed}"
    assert not left, f"threads left: {left}"


@pytest.fixture
def chromium() -> str:
    """Path of a real Chromium; the test is skipped by name where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium here: apt-get install chromium")


def _images_of_digits(root: Path, classes: int, each: int) -> Path:
    """`each` PNG images of each of so many digits, in `root`."""
    from PIL import Image

    from edgecompress.data import load_data

    data = load_data("digits")
    for label in range(classes):
        (root / f"class{label}").mkdir(parents=True)
        chosen = (data.train.labels == label).nonzero()[:each, 0].tolist()
        for number, index in enumerate(chosen):
            pixels = data.train.pixels[index].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(root / f"class{label}" / f"{number}.png")
    return root


@pytest.fixture
def digits_folder(tmp_path: Path) -> Path:
    """A small tree of 3 classes with 12 PNG images each, from the digits."""
    return _images_of_digits(tmp_path / "images", 3, 12)


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Data of 20 images of each digit, for tests that ask whether something runs, not how well."""
    return f"folder:{_images_of_digits(tmp_path_factory.mktemp('few') / 'digits', 10, 20)}"
