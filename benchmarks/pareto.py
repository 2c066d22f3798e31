"""Accuracy against bytes of the file that ships, and what a user would take instead.

    python benchmarks/pareto.py --data DIR                     # the rows that are missing
    python benchmarks/pareto.py --data DIR --only ours --target 96KB --minutes 45
    python benchmarks/pareto.py --data DIR --only resnet8-int8 resnet20-fp32 resnet20-int8

Every row is one command with `--time` (--minutes, default 45, on 2 cores), on DIR, CIFAR-10
(JPEG): a tenth of its training split is validation, and its 10,000 test images are read once for
each row. References are trained in the same time on the same files: ResNet-8 in int8 (MLPerf
Tiny's IC01), ResNet-20 in fp32 and int8. A row is stored as it ends; what is stored is not run
again. Results: results/pareto.json.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import yaml

from common import SEED, Bench, Row, add_images, bench_of, edgecompress, parser

START = "resnet20"
TARGETS = ("32KB", "96KB", "320KB")
REFERENCES = {
    "resnet8-int8": ("resnet8", "int8"),
    "resnet20-fp32": ("resnet20", "none"),
    "resnet20-int8": ("resnet20", "int8"),
}
"""Networks trained as they are, and the format of their file."""


def ours(bench: Bench, target: str, seed: int, minutes: float, data: Path, work: Path) -> Row:
    """`compress` with no options but the target and the time."""
    words: list[object] = ["compress", bench.size(START, "lenet5"), "--target", target]
    return _measured(bench, words, {"target": target, "name": "ours"}, seed, minutes, data, work)


def reference(bench: Bench, name: str, seed: int, minutes: float, data: Path, work: Path) -> Row:
    """A network trained from scratch and written in its format."""
    model, form = REFERENCES[name]
    recipe = {
        "model": bench.size(model, "lenet5"),
        "stages": [
            {"stage": "train"},
            {"stage": "simplify"},
            {"stage": "export"},
            {"stage": "quantize", "quantize": form},
            {"stage": "measure"},
        ],
    }
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return _measured(bench, ["run", path], {"name": name}, seed, minutes, data, work)


def _measured(
    bench: Bench, words: list[object], named: Row, seed: int, minutes: float, data: Path, work: Path
) -> Row:
    """The row of a command: what its file takes and reaches."""
    seconds = bench.size(60 * minutes, 2.0)
    begun = time.perf_counter()
    settings = {"data": f"folder:{data}", "time": f"{seconds:g}s", "seed": seed}
    options: list[object] = []
    for key, value in settings.items():
        options += [f"--{key}", value] if words[0] == "compress" else ["--set", f"{key}={value}"]
    result = edgecompress(
        *words, *options, "--exist-ok", "--json", "-o", work / "run", exits=(0, 3)
    )
    student = result["student"]
    shown = " ".join(["edgecompress", *map(str, words), f"--time {seconds:g}s --data folder:DIR"])
    return {
        **named,
        "command": shown.replace(str(work) + "/", ""),
        "seed": seed,
        "bytes": result["bytes"],
        "format": result["format"],
        "accuracy": student["accuracy"],
        "ci95": student["ci95"],
        "n": student["n"],
        "params": student["params"],
        "macs": student["macs"],
        "teacher_accuracy": result["teacher"]["accuracy"],
        "stages": [
            {key: entry.get(key) for key in ("name", "accuracy", "params", "wall_s")}
            for entry in result["stages"]
        ],
        "exit": result["exit"],
        "time_s": seconds,
        "wall_s": time.perf_counter() - begun,
        **bench.machine(),
    }


def main() -> None:
    """The rows that are asked for and missing."""
    options = parser(__doc__)
    add_images(options, "--data")
    options.add_argument("--only", nargs="+", default=["ours", *REFERENCES])
    options.add_argument("--target", nargs="+", default=list(TARGETS))
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--minutes", type=float, default=45.0)
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    path = bench.folder / "pareto.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.is_file() else []
    wanted = [("ours", target) for target in bench.size(arguments.target, ["25KB"])]
    wanted = [*(wanted if "ours" in arguments.only else []), *((n, None) for n in REFERENCES)]
    seed, minutes = arguments.seed, arguments.minutes
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = bench.images(arguments.data, work)
        for one, target in wanted:
            key = (one, target, seed)
            known = [(row["name"], row.get("target"), row["seed"]) for row in rows]
            if one not in arguments.only or key in known:
                continue
            if target is None:
                row = reference(bench, one, seed, minutes, data, work)
            else:
                row = ours(bench, target, seed, minutes, data, work)
            rows.append(row)
            print(json.dumps(row), flush=True)
            label = bench.size("CIFAR-10 (JPEG), test split", "digits")
            bench.store(command=bench.command("--data", "DIR"), data=label, rows=rows)


if __name__ == "__main__":
    main()
