"""What a training recipe is worth on images of 32 pixels: one change after the other, validated.

    python benchmarks/training.py --data DIR              # the rows that are missing; 4 min each
    python benchmarks/training.py --data DIR --only adamw sgd
    python benchmarks/training.py --data DIR --epochs 30  # beside those of other lengths

Every row is `edgecompress train` of ResNet-8, seed 0, on DIR, CIFAR-10 (JPEG), of whose training
split a tenth is the validation split; the test split is never read. A row is stored as it ends; a
row that is stored already is not run again. Results: results/training.json.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

from common import SEED, Bench, Row, add_images, bench_of, edgecompress, parser

ADAMW = ("--optimizer", "adamw", "--learning-rate", "0.001")
SGD = ("--optimizer", "sgd", "--learning-rate", "0.1")
AVERAGE = (*SGD, "--average", "5%")
BASE = (*AVERAGE, "--flip", "alternate")
ROWS: dict[str, tuple[str, ...]] = {
    "adamw": ADAMW,
    "adamw + average": (*ADAMW, "--average", "5%"),
    "sgd": SGD,
    "sgd + average": AVERAGE,
    "base: sgd + average + alternate": BASE,
    "base, cutout 8": (*BASE, "--cutout", "8"),
    "base, no smoothing": (*BASE, "--label-smoothing", "0"),
    "base, bias rate 8": (*BASE, "--bias-rate", "8"),
    "base, no norm decay": (*BASE, "--no-norm-decay"),
    "base, cosine": (*BASE, "--lr-schedule", "cosine"),
    "base, rate 0.3": (*BASE, "--learning-rate", "0.3"),
    "base, batch 64": (*BASE, "--batch-size", "64", "--learning-rate", "0.05"),
    "adamw, rate 0.005": ("--optimizer", "adamw", "--learning-rate", "0.005"),
    "base, fp32": (*BASE, "--precision", "fp32"),
}
"""Options of each row."""


def row(bench: Bench, name: str, epochs: int, data: Path, work: Path) -> Row:
    """One training: what its best epoch has on validation."""
    network = bench.size("resnet8", "lenet5")
    options = ["--epochs", epochs, "--seed", SEED, "--precision", "bf16", *ROWS[name]]
    result = edgecompress(
        "train", network, "--data", f"folder:{data}", *options, "--exist-ok", "--json", "-o", work
    )
    with (work / "history.csv").open() as file:
        (chosen,) = [entry for entry in csv.DictReader(file) if entry["chosen"] == "True"]
    return {
        "name": name,
        "command": " ".join(
            map(str, ["edgecompress train", network, "--data folder:DIR", *options])
        ),
        "network": network,
        "epochs": epochs,
        "seed": SEED,
        "validation_accuracy": float(chosen["validation_accuracy"]),
        "validation_loss": float(chosen["validation_loss"]),
        "best_epoch": int(chosen["epoch"]),
        "ci95": result["stages"][-1]["ci95"],
        "n": result["stages"][-1]["n"],
        **bench.machine(),
    }


def stored(bench: Bench) -> list[Row]:
    """The rows of earlier runs."""
    path = bench.folder / "training.json"
    return list(json.loads(path.read_text())["rows"]) if path.is_file() else []


def main() -> None:
    """The rows that are asked for and missing."""
    options = parser(__doc__)
    add_images(options, "--data")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS))
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    epochs = bench.size(arguments.epochs, 1)
    rows = stored(bench)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = bench.images(arguments.data, work)
        for one in bench.size(arguments.only, ["base, bias rate 8"]):
            if any((known["name"], known["epochs"]) == (one, epochs) for known in rows):
                continue
            rows.append(row(bench, one, epochs, data, work / "run"))
            print(json.dumps(rows[-1]), flush=True)
            label = bench.size("CIFAR-10 (JPEG), validation: a tenth of train", "digits")
            bench.store(command=bench.command("--data", "DIR"), data=label, rows=rows)


if __name__ == "__main__":
    main()
