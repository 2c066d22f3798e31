"""Tables of emulated networks, and of distillation over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.scripts.markdown import table
from docs.scripts.results.files import bullets, percent, read


def links() -> str:
    """Links as they were requested, and as they were measured."""
    rows = [_link(row) for row in read("emulate")["links"]["rows"]]
    return table(["requested", "round trip", "bandwidth (frames)"], rows)


def _link(row: Mapping[str, Any]) -> tuple[str, str, str]:
    requested, measured = row["asked"], row["measured"]
    bandwidth = f"{measured['bw_mbps']:.2f} Mbit/s"
    if "delay" not in requested:
        return f"{requested['bw']} Mbit/s", f"{measured['rtt_ms']:.2f} ms", bandwidth
    delay = requested["delay"].replace("ms", " ms")
    name = f"{delay} each way, {requested['bw']} Mbit/s"
    return name, f"{measured['rtt_ms']:.1f} ms", bandwidth


def lessons() -> str:
    """What travels, and what it costs."""
    result = read("emulate")
    capture, hiding, taught = result["capture_under_load"], result["hiding"], result["lessons"]
    soft = [row["bytes_per_sample"] for row in taught["rows"] if row["how"] == "soft"]
    means = {how: percent(mean, 2) for how, mean in taught["means"].items()}
    wire = {(row["exchange"], row["codec"]): row for row in result["wire"]}
    logits, inputs = wire["logits", "fp16"], wire["inputs", "fp16"]
    rates = hiding["steps_per_s"]
    return bullets(
        f"A capture at both ends at {capture['mbps']:.0f} Mbit/s for {capture['seconds']:.0f} s: "
        f"{sum(capture['kernel_dropped'])} packets dropped.",
        f"Soft labels (at most 2 bytes per sample): {max(soft):.2f} bytes per sample. LeNet-5 "
        f"reaches {means['soft']} on digits, with fp32 logits {means['fp32']}, in one process "
        f"{means['one process']} (means of {len(soft)} seeds; one image is 0.28 points).",
        f"Bytes on the wire, exchange `inputs`, batches of {inputs['batch']}: "
        f"{inputs['ratio']:.2f}x the payload.",
        f"Bytes on the wire, fp16 logits, batches of {logits['batch']}: "
        f"{logits['ratio']:.2f}x the payload, in a lesson of {logits['payload_bytes'] / 1e3:.0f} "
        "KB (at most 1.15x is required).",
        f"Steps per second at 100 ms of round trip: {rates['100 ms']:.1f}, at 0 ms "
        f"{rates['0 ms']:.1f}; ratio {hiding['ratio']:.2f} (at least 0.9 is required).",
    )


def mutual() -> str:
    """Mutual learning at 100 ms of round trip, with and without staleness."""
    rows = []
    for row in read("emulate")["mutual"]["rows"]:
        network, process = row["over_the_network"], row["in_one_process"]
        rows.append(
            (
                str(row["staleness"]),
                f"{row['steps_per_s']:.1f}",
                f"{percent(network['teacher'], 2)}, {percent(network['student'], 2)}",
                f"{percent(process['teacher'], 2)}, {percent(process['student'], 2)}",
            )
        )
    return table(
        ["staleness", "steps per second", "teacher, student", "the same in one process"],
        rows,
    )
