"""Distillation on CIFAR-10 (JPEG), and the rate of the input pipeline.

    # DIR/train and DIR/test, a folder a class; about 80 minutes on 2 cores
    python benchmarks/distill.py --data DIR
    python benchmarks/distill.py --rate              # the input pipeline alone, 1 minute

The teacher is recipes/cifar10/teacher.yaml (ResNet-20), the student recipes/cifar10/student3.yaml
(the source's student 3, its images enlarged to 64×64) with its control: the same student, as many
epochs, no teacher. Both are the real commands. Accuracies are of the ONNX files on the 10,000 test
images, read once, after everything was chosen on a tenth of the training images. A run that is
there is taken as it is (--work). Results go to benchmarks/results/distill.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


def run(recipe: str, folder: Path, *more: str) -> dict[str, Any]:
    """Run a recipe into `folder` if it is not there yet; its result."""
    if not (folder / "result.json").is_file():
        command = [
            sys.executable,
            "-m",
            "edgecompress.cli.app",
            "run",
            str(ROOT / "recipes/cifar10" / recipe),
            "-o",
            str(folder),
        ]
        for value in more:
            command += ["--set", value]
        resume = ["--resume"] if (folder / "resolved.yaml").is_file() else []
        subprocess.run([*command, *resume], check=True, cwd=ROOT)
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


def pipeline_rate(repeats: int = 5, steps: int = 60) -> list[dict[str, Any]]:
    """Training steps a second with the input pipeline, over those of the same steps on one ready
    batch; medians of `repeats`, in turns.
    """
    import torch

    from edgecompress.data import DataSet, Images, Preprocess
    from edgecompress.data.images import Augmentation
    from edgecompress.models import ModelSource, build
    from edgecompress.train.batches import batches
    from edgecompress.train.fit import Learner, _Run, cross_entropy
    from edgecompress.train.settings import FitSettings

    torch.manual_seed(0)
    torch.set_num_threads(2)
    images = Images(
        torch.randint(0, 256, (128 * steps, 3, 32, 32), dtype=torch.uint8),
        torch.randint(0, 10, (128 * steps,)),
    )
    rows = []
    for name, size in (("student3", None), ("student3", 64), ("resnet20", None)):
        preprocess = Preprocess((0.5,) * 3, (0.25,) * 3, size, size)
        data = DataSet(
            "made",
            "made",
            tuple("0123456789"),
            images,
            images,
            images,
            preprocess,
            Augmentation(True, 4, 8),
        )
        model = build(ModelSource(name, 10, data.image_shape))
        ratios, rates = [], []
        with _Run(
            "",
            Learner(model, cross_entropy, FitSettings(1, 128)),
            steps * (2 * repeats + 1),
            torch.device("cpu"),
        ) as trained:

            def seconds(drawn: Any, trained: Any = trained) -> float:
                start = time.perf_counter()
                with trained.training():
                    for batch in drawn:
                        trained.learn(trained.forward(batch), batch, 1)
                return time.perf_counter() - start

            real = FitSettings(1, 128)
            ready = next(batches(data, real, torch.device("cpu"), 0, 1))
            seconds([ready] * 10)
            for epoch in range(1, repeats + 1):
                synthetic = seconds([replace(ready)] * steps)
                loaded = seconds(batches(data, real, torch.device("cpu"), 0, epoch))
                ratios.append(synthetic / loaded)
                rates.append(128 * steps / loaded)
        rows.append(
            {
                "model": name,
                "image": list(data.image_shape),
                "of_synthetic": statistics.median(ratios),
                "ratios": ratios,
                "images_per_s": statistics.median(rates),
            }
        )
        print(
            f"{name} {data.image_shape}: {rows[-1]['of_synthetic']:.1%} of the rate on a "
            "ready batch",
            flush=True,
        )
    return rows


def store(**parts: Any) -> None:
    """Put `parts` into the result file, whole."""
    path = RESULTS / "distill.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**known, **parts}, indent=1) + "\n")
    temporary.replace(path)


def main() -> None:
    """What was asked, and a summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "benchmark-distill")
    parser.add_argument("--rate", action="store_true")
    parser.add_argument(
        "--set", action="append", default=[], help="over student3.yaml, e.g. stages.2.epochs=20"
    )
    arguments = parser.parse_args()
    if arguments.rate or arguments.data is None:
        from edgecompress.measure import machine

        store(
            input_pipeline={
                "command": "python benchmarks/distill.py --rate",
                "hardware": machine.hardware(),
                "rows": pipeline_rate(),
            }
        )
        return
    data = f"data=folder:{arguments.data.expanduser().resolve()}"
    teacher = run("teacher.yaml", arguments.work / "teacher", data)
    checkpoint = f"stages.0.checkpoint={arguments.work / 'teacher' / 'model.safetensors'}"
    result = run("student3.yaml", arguments.work / "student3", data, checkpoint, *arguments.set)
    keys = (
        "bytes",
        "format",
        "teacher",
        "student",
        "distill",
        "control",
        "stages",
        "parity",
        "seed",
        "wall_s",
        "peak_rss_bytes",
    )
    store(
        command="python benchmarks/distill.py --data DIR",
        data="CIFAR-10 (JPEG), test split of 10,000 images, one run (seed 0)",
        hardware=result["hardware"],
        versions=result["versions"],
        teacher_training={"stages": teacher["stages"], "wall_s": teacher["wall_s"]},
        **{f"student3_{key}" if key == "stages" else key: result[key] for key in keys},
    )
    student, control, first = (result[key]["accuracy"] for key in ("student", "control", "teacher"))
    print(
        f"teacher {first:.2%}, student 3 {student:.2%}, its control {control:.2%}; the "
        "source reports 66.9 %"
    )


if __name__ == "__main__":
    main()
