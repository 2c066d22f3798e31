"""`edgecompress doctor`: what works here, and the command that mends what does not."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from edgecompress.cli.console import Debug, Json, print_json, print_line


@dataclass(frozen=True)
class Check:
    """One line: what, whether it works, what was found, and the command that mends it."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def _package(name: str, extra: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(
            name,
            False,
            "not installed",
            f"pip install 'edgecompress[{extra}]'" if extra else f"pip install {name}",
        )


def _program(name: str, package: str) -> Check:
    path = shutil.which(name)
    return Check(name, path is not None, path or "not found", f"sudo apt-get install {package}")


def _gpu() -> Check:
    try:
        import torch
    except ImportError:
        return Check("GPU", False, "torch is not installed", "pip install 'edgecompress[train]'")
    if torch.cuda.is_available():
        return Check("GPU", True, torch.cuda.get_device_name(0))
    return Check(
        "GPU",
        False,
        "none that torch can use",
        "install the NVIDIA driver and a CUDA build of torch (optional)",
    )


def _processor() -> Check:
    from edgecompress.measure import machine

    features = machine.cpu_features()
    known = f"{machine.cpu_name()}, {machine.cores()} core(s), {machine.instruction_set(features)}"
    return Check("CPU", True, "; ".join((known, *machine.instruction_set_effects(features))))


def _netem() -> Check:
    """Whether the kernel has sch_netem, found out in a network namespace of our own."""
    fix = "sudo modprobe sch_netem (from linux-modules-extra on some systems), or use wirefilter"
    if os.geteuid() != 0:
        return Check("netem", False, "can be probed as root only", "sudo edgecompress doctor")
    if shutil.which("unshare") is None or shutil.which("tc") is None:
        return Check(
            "netem", False, "unshare or tc is missing", "sudo apt-get install iproute2 util-linux"
        )
    probe = ["unshare", "-n", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=20, check=False)
    text = (
        "the kernel has it"
        if done.returncode == 0
        else (done.stderr.strip().splitlines() or ["refused"])[0]
    )
    return Check("netem", done.returncode == 0, text, fix)


def _cgroup() -> Check:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return Check("cgroup", True, "version 2")
    if Path("/sys/fs/cgroup/cpu").exists():
        return Check("cgroup", True, "version 1")
    return Check("cgroup", False, "none mounted", "sudo mount -t cgroup2 none /sys/fs/cgroup")


def checks() -> list[Check]:
    """All checks, in the order shown."""
    packages = [
        ("torch", "train"),
        ("torchvision", "train"),
        ("onnxscript", "train"),
        ("onnx", ""),
        ("onnxruntime", ""),
        ("trustme", "emulate"),
    ]
    from edgecompress.emulate.shell import PACKAGES

    root = os.geteuid() == 0
    return [
        *[_package(name, extra) for name, extra in packages],
        _processor(),
        _gpu(),
        Check("root", root, "yes" if root else "no", "run with sudo (only emulate needs it)"),
        _netem(),
        *[_program(name, package) for name, package in {**PACKAGES, "wirefilter": "vde2"}.items()],
        _cgroup(),
    ]


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what works on this machine, and the command that mends each thing that does not."""
    results = checks()
    if as_json:
        print_json({"checks": [asdict(check) for check in results]})
        return
    for check in results:
        mend = "" if check.ok else f"  ->  {check.fix}"
        print_line(f"{'ok     ' if check.ok else 'missing'}  {check.name:<12} {check.found}{mend}")
