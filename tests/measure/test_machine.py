"""The description of this machine."""

from __future__ import annotations

import pytest

from edgecompress.measure import machine


def test_the_machine_is_described() -> None:
    hardware = machine.hardware()
    assert hardware["cores"] == machine.cores() >= 1
    assert machine.peak_rss_bytes() > 10**7
    assert set(machine.versions()) >= {"python", "torch", "onnxruntime", "edgecompress"}


@pytest.mark.parametrize(
    ("features", "name", "effects"),
    [
        ({"avx2", "avx512f", "avx512_vnni"}, "AVX-512 with VNNI", ("oneDNN#6035",)),
        ({"avx2", "avx512f"}, "AVX-512 without VNNI", ("oneDNN#6035", "7 bits")),
        ({"avx2", "avx_vnni"}, "AVX2 with VNNI", ("oneDNN#6035",)),
        ({"avx2"}, "AVX2 without VNNI", ("oneDNN#6035", "7 bits")),
        ({"asimd", "asimddp"}, "NEON with int8 dot products", ()),
        ({"sse2"}, "no vector instructions that are known here", ("7 bits",)),
    ],
)
def test_the_instruction_set_and_its_effects(
    features: set[str], name: str, effects: tuple[str, ...]
) -> None:
    assert machine.instruction_set(frozenset(features)) == name
    sentences = machine.instruction_set_effects(frozenset(features))
    assert len(sentences) == len(effects)
    assert all(word in text for word, text in zip(effects, sentences, strict=True))


def test_threads_are_the_cores_or_what_the_environment_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value, wanted in (("1", 1), ("", machine.cores()), ("none", machine.cores()), ("1,1", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert machine.threads() == wanted
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert machine.threads() == machine.cores()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert machine.threads() == machine.cores()


def test_bfloat16_needs_a_processor_that_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    native = frozenset({"avx2", "avx512f", "avx512_bf16"})
    assert machine.has_bf16(native)
    assert machine.has_bf16(frozenset({"amx_bf16"}))
    assert not machine.has_bf16(frozenset({"avx2", "avx512f", "avx512_vnni"}))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not machine.has_bf16(native), "oneDNN would emulate it"


def test_apples_processors_have_a_dot_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no /proc there: simulated."""
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    features = machine.cpu_features.__wrapped__()
    assert machine.has_int8_dot(features)
    assert machine.instruction_set(features) == "NEON with int8 dot products"


def test_where_instructions_are_not_reported_nothing_is_claimed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows and Intel Macs have no /proc/cpuinfo: simulated."""
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setattr(machine, "_cpuinfo", dict)
    features = machine.cpu_features.__wrapped__()
    monkeypatch.setattr(machine, "cpu_features", lambda: features)
    assert not machine.knows_features()
    assert machine.instruction_set(features) == "not reported here"
    assert machine.instruction_set_effects(features) == ()
