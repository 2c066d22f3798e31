"""Training in two processes gives the network of one process, up to rounding. One test starts them
by torchrun itself; in the others they are forked, with the variables that torchrun sets.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.test_cli import process, run


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2 -m edgecompress ...` on this machine's processor."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "edgecompress",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EDGECOMPRESS_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment,
    )


def ranks(*arguments: object, cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """The same command in two processes that train together, by rank."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}

    def start(rank: int) -> subprocess.CompletedProcess[str]:
        own = {**shared, "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
        return process(*arguments, cwd=cwd, **{key: str(value) for key, value in own.items()})

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(start, range(2)))


def alone(*arguments: object, cwd: Path) -> None:
    done = process(*arguments, "--threads", "1", cwd=cwd)
    assert done.returncode == 0, done.stderr


def test_two_processes_train_the_network_of_one(tmp_path: Path) -> None:
    options = (
        "train",
        "mlp",
        "--epochs",
        2,
        "--precision",
        "fp32",
        "--optimizer",
        "sgd",
        "--learning-rate",
        0.01,
    )
    done = torchrun(*options, "-o", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    alone(*options, "-o", "one", cwd=tmp_path)
    two, one = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-5, rtol=2e-4)
    accuracies = [
        json.loads((tmp_path / name / "result.json").read_text())["stages"][0]["accuracy"]
        for name in ("two", "one")
    ]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.008)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"], (
        "the second process writes no files"
    )
    assert done.stdout.count("model.safetensors") == 1, "one process prints"


def test_a_network_is_cut_alike_in_both_processes(few: str, tmp_path: Path) -> None:
    """If each process chose its own channels, the next step's gradients could not be summed."""
    done = run("train", "lenet5", "--data", few, "--epochs", 1, "-o", "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done, other = ranks(
        "prune", "a", "--amount", "50%", "--epochs", 1, "-o", "b", "--json", cwd=tmp_path
    )
    assert done.returncode == other.returncode == 0, done.stderr + other.stderr
    assert json.loads(done.stdout)["stages"][-1]["params"] < 0.55 * 62_006


def test_both_processes_fit_the_same_epochs_into_a_time(few: str, tmp_path: Path) -> None:
    """Each measures on its own; if they chose two numbers, one would wait for the other."""
    both = ranks("train", "mlp", "--data", few, "--time", "2s", "-o", "t", cwd=tmp_path)
    assert [done.returncode for done in both] == [0, 0], both
    assert len((tmp_path / "t" / "history.csv").read_text().splitlines()) >= 2


def test_bad_input_ends_both_processes(tmp_path: Path) -> None:
    both = ranks("train", "mlp", "--data", "nothing", "-o", "x", cwd=tmp_path)
    assert [done.returncode for done in both] == [2, 2]
    assert "unknown data 'nothing'" in both[0].stderr
    assert not (tmp_path / "x").exists()


def test_two_processes_merge(few: str, tmp_path: Path) -> None:
    for seed in (1, 2):
        options = ("--data", few, "--epochs", 1, "--seed", seed, "-o", f"p{seed}")
        assert run("train", "lenet5", *options, cwd=tmp_path).returncode == 0
    options = ("--epochs", 1, "--finetune-epochs", 1, "-o", "m", "--json")
    done, other = ranks("merge", "p1", "p2", *options, cwd=tmp_path)
    assert done.returncode == other.returncode == 0, done.stderr + other.stderr
    assert json.loads(done.stdout)["student"]["params"] == 62_006
