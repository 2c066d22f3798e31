"""This machine: processor, instruction sets, cores that we may use, memory, versions.

Imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from functools import lru_cache
from pathlib import Path

import psutil

from edgecompress import __version__

_RECORDED = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm"),
)
"""Instruction-set flags that a result records."""
_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy")


def _cpuinfo() -> dict[str, str]:
    fields: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


@lru_cache
def cpu_name() -> str:
    """The name of the processor in /proc/cpuinfo, or as the platform reports it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


@lru_cache
def cpu_features() -> frozenset[str]:
    """Instruction-set flags as the kernel names them (`avx2`, `avx512_vnni`, ...); empty where the
    kernel does not report them. All of Apple's Arm processors have dot products.
    """
    if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        return frozenset(("asimd", "asimddp"))
    fields = _cpuinfo()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def knows_features() -> bool:
    """Does this system report its processor's instructions? Those of Windows and Intel Macs do
    not.
    """
    return bool(cpu_features())


def has_int8_dot(features: frozenset[str] | None = None) -> bool:
    """True where the CPU multiplies int8 without saturating 16-bit sums: VNNI or AMX on x86, dot
    products on Arm.

    `features` are instruction-set flags as the kernel names them; None: this processor's.
    """
    flags = cpu_features() if features is None else features
    return bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def has_bf16(features: frozenset[str] | None = None) -> bool:
    """True where the CPU multiplies bfloat16 itself (elsewhere it is slower than float32): x86 with
    AVX512_BF16 or AMX, unless oneDNN is held to older instructions.

    `features` are instruction-set flags as the kernel names them; None: this processor's.
    """
    flags = cpu_features() if features is None else features
    held = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper() not in ("ALL", "DEFAULT")
    return bool(flags & {"avx512_bf16", "amx_bf16"}) and not held


def instruction_set(features: frozenset[str]) -> str:
    """The widest vector instructions among `features`, and whether they multiply int8 exactly, e.g.
    `AVX-512 with VNNI`.
    """
    if "avx512f" in features:
        return "AVX-512 with VNNI" if "avx512_vnni" in features else "AVX-512 without VNNI"
    if "avx2" in features:
        return "AVX2 with VNNI" if "avx_vnni" in features else "AVX2 without VNNI"
    if features & {"asimd", "neon"}:
        relation = "with" if features & {"asimddp", "i8mm"} else "without"
        return f"NEON {relation} int8 dot products"
    return "no vector instructions that are known here" if features else "not reported here"


def instruction_set_effects(features: frozenset[str]) -> tuple[str, ...]:
    """Effects of a processor with `features` on training and quantization, one sentence each."""
    effects = []
    if "avx2" in features:
        effects.append(
            "1x1 convolutions with a stride and fewer than 16 input channels train as a pooling "
            "and stride 1 (oneDNN#6035)"
        )
    if features and not has_int8_dot(features):
        effects.append(
            "products of 8-bit weights saturate: int8 files need the 7 bits of --cpu any"
        )
    if has_bf16(features):
        effects.append("large data is trained in bfloat16, unless --precision says otherwise")
    return tuple(effects)


def cores() -> int:
    """Cores this process may use: the smaller of its affinity and the quota of its cgroup, at least
    1.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quota = _cgroup_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def threads() -> int:
    """Threads to compute on where a user names none: `cores`, or `OMP_NUM_THREADS` where that is
    less. torchrun sets it, so that the processes of one machine share its cores.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(cores(), int(wanted)) if wanted.isdigit() and int(wanted) > 0 else cores()


def _cgroup_quota() -> float | None:
    """Cores granted by cgroup v2 or v1, or None when unlimited."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1.0, int(quota) / int(period))
    except (OSError, ValueError):
        pass  # not version 2
    try:
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return None if quota_us <= 0 else max(1.0, quota_us / period_us)
    except (OSError, ValueError):
        return None


def own_peak_rss_bytes() -> int:
    """Largest resident memory of this process since its program began, in bytes.

    On Linux `getrusage` also counts the process before it became this program: a copy of its
    parent, which may be large.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if match:
            return 1024 * int(match.group(1))
    memory = psutil.Process().memory_info()
    # Windows keeps the peak itself; elsewhere the kernel's accounts have it
    return int(getattr(memory, "peak_wset", 0)) or max(memory.rss, _rusage_bytes("RUSAGE_SELF"))


def peak_rss_bytes() -> int:
    """Largest resident memory of this process and of its ended children so far, in bytes."""
    return max(own_peak_rss_bytes(), _rusage_bytes("RUSAGE_CHILDREN"))


def _rusage_bytes(who: str) -> int:
    """The largest resident memory in the accounts of `who`; 0 on Windows, which has none."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * int(resource.getrusage(getattr(resource, who)).ru_maxrss)


def hardware() -> dict[str, object]:
    """The machine, as results record it."""
    memory = psutil.virtual_memory().total
    return {
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "cores": cores(),
        "memory_bytes": memory,
        "instructions": [name for name in _RECORDED if name in cpu_features()],
        "int8_dot": has_int8_dot(),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of its dependencies; packages that are not installed
    are absent.
    """
    installed = {"python": platform.python_version(), "edgecompress": __version__}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
