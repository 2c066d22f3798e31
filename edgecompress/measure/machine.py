"""What machine this is: processor, instruction sets, cores that we may use, memory, versions.
Imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import sys
from functools import lru_cache
from pathlib import Path


def _cpuinfo() -> dict[str, str]:
    fields: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


@lru_cache
def cpu_name() -> str:
    """The processor's name as the kernel gives it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


@lru_cache
def cpu_features() -> frozenset[str]:
    """Instruction-set flags as the kernel names them (`avx2`, `avx512_vnni`, ...); empty where the
    kernel does not say.
    """
    fields = _cpuinfo()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def has_int8_dot(features: frozenset[str] | None = None) -> bool:
    """True where the CPU multiplies int8 without saturating 16-bit sums: VNNI or AMX on x86, dot
    products on Arm.

    `features` are instruction-set flags as the kernel names them; None: this processor's.
    """
    found = cpu_features() if features is None else features
    return bool(found & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def instruction_set(features: frozenset[str]) -> str:
    """The widest vector instructions among `features`, and whether they multiply int8 exactly, e.g.
    `AVX-512 with VNNI`.
    """
    if "avx512f" in features:
        return "AVX-512 with VNNI" if "avx512_vnni" in features else "AVX-512 without VNNI"
    if "avx2" in features:
        return "AVX2 with VNNI" if "avx_vnni" in features else "AVX2 without VNNI"
    if features & {"asimd", "neon"}:
        return (
            "NEON with int8 dot products"
            if features & {"asimddp", "i8mm"}
            else "NEON without int8 dot products"
        )
    return "no vector instructions that are known here"


def instruction_set_effects(features: frozenset[str]) -> tuple[str, ...]:
    """What a processor with `features` changes in how networks are trained and quantized, a
    sentence each.
    """
    effects = []
    if "avx2" in features and "avx512f" not in features:
        effects.append(
            "1x1 convolutions with a stride and fewer than 8 input channels train as a slice "
            "and stride 1 (oneDNN#6035)"
        )
    if not has_int8_dot(features):
        effects.append("int8 weights get 7 bits, since products of 8 bits saturate")
    return tuple(effects)


def cores() -> int:
    """Cores this process may use: the smaller of its affinity and its cgroup's quota, at least
    1.
    """
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = _cgroup_quota()
    return max(1, min(allowed, int(quota))) if quota is not None else allowed


def _cgroup_quota() -> float | None:
    """Cores granted by cgroup v2 or v1, or None when unlimited."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1.0, int(quota) / int(period))
    except (OSError, ValueError):
        pass
    try:
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return None if quota_us <= 0 else max(1.0, quota_us / period_us)
    except (OSError, ValueError):
        return None


def own_peak_rss_bytes() -> int:
    """Largest resident memory of this process since its program began, in bytes.

    On Linux `getrusage` counts what the process was before it became this program, too: a child of
    a large parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found.group(1))
    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(
        resource.RUSAGE_SELF
    ).ru_maxrss


def peak_rss_bytes() -> int:
    """Largest resident memory of this process and of its ended children so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return max(own_peak_rss_bytes(), unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def hardware() -> dict[str, object]:
    """What a result needs to say of its machine."""
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "cores": cores(),
        "memory_bytes": memory,
        "instructions": [name for name in wanted if name in cpu_features()],
        "int8_dot": has_int8_dot(),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it stands on; packages that are not installed
    are absent.
    """
    found = {"python": platform.python_version()}
    for name in (
        "edgecompress",
        "torch",
        "torchvision",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "numpy",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
