"""Distillation on CIFAR-10 (JPEG), and the rate of the input pipeline.

    # DIR/train and DIR/test, one folder per class; about 80 minutes on 2 cores
    python benchmarks/distill.py --data DIR
    python benchmarks/distill.py --rate              # the input pipeline alone, 1 minute

The teacher is recipes/cifar10/teacher.yaml (ResNet-20), the student recipes/cifar10/student3.yaml
(the source's student 3, its images enlarged to 64×64) with its control: the same student, as many
epochs, no teacher. Both are the real commands. Accuracies are of the ONNX files on the 10,000 test
images, read once, after everything was chosen on a tenth of the training images. A finished run
in --work is not repeated. Results go to benchmarks/results/distill.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from common import ROOT, SEED, Bench, Row, add_images, bench_of, edgecompress, parser
from edgecompress.core.convolutions import safe_convolutions
from edgecompress.data import DataSet, Images, Preprocess
from edgecompress.data.images import Augmentation
from edgecompress.models import ModelSource, build
from edgecompress.train.batches import Batch, batches
from edgecompress.train.fit import label_loss, make_optimizer
from edgecompress.train.settings import FitSettings

CPU = torch.device("cpu")
BATCH = 128
KEYS = (
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
"""What is taken from the student's result."""
RATED: list[tuple[str, int | None]] = [("student3", None), ("student3", 64), ("resnet20", None)]
"""Networks whose input pipeline is measured, and the side that images are resized to."""
QUICK_TEACHER = ("stages.0.epochs=1", "stages.0.precision=fp32")
QUICK_STUDENT = ("stages.2.epochs=1", "stages.2.views=1", "stages.2.precision=fp32")
"""Settings of the recipes at smoke size."""


def run(recipe: str, folder: Path, settings: Iterable[str]) -> Row:
    """Run a recipe into `folder` if it is not there yet; its result."""
    result = folder / "result.json"
    if not result.is_file():
        path = ROOT / "recipes/cifar10" / recipe
        changed = [word for value in settings for word in ("--set", value)]
        resume = ["--resume"] if (folder / "resolved.yaml").is_file() else []
        edgecompress("run", path, "-o", folder, *changed, *resume)
    return dict(json.loads(result.read_text()))


def pipeline_rate(models: Iterable[tuple[str, int | None]], repeats: int, steps: int) -> list[Row]:
    """Training steps per second with the input pipeline, over those of the same steps on one ready
    batch; medians of `repeats`, interleaved. `models` are names and the side that images are
    resized to (None: 32).
    """
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    rows = []
    images = random_images(BATCH * steps)
    for name, side in models:
        data = random_data(images, side)
        model = build(ModelSource(name, 10, data.image_shape))
        row = rates(model, data, repeats, steps)
        rows.append({"model": name, "image": list(data.image_shape), **row})
        share = rows[-1]["of_synthetic"]
        print(f"{name} {data.image_shape}: {share:.1%} of the rate on a ready batch", flush=True)
    return rows


def random_images(count: int) -> Images:
    """Random pixels (count, 3, 32, 32) and labels."""
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return Images(pixels, torch.randint(0, 10, (count,)))


def random_data(images: Images, side: int | None) -> DataSet:
    """A data set of `images`, resized to `side`, with the augmentation of CIFAR-10."""
    preprocess = Preprocess((0.5,) * 3, (0.25,) * 3, side, side)
    classes = tuple("0123456789")
    augmentation = Augmentation(True, 4, 8)
    return DataSet("random", "random", classes, images, images, images, preprocess, augmentation)


def rates(model: nn.Module, data: DataSet, repeats: int, steps: int) -> Row:
    """The rate on loaded batches, and its share of the rate on one ready batch."""
    settings = FitSettings(1, BATCH)
    step = training_step(model, settings)
    ready = next(batches(data, settings, CPU, SEED, 1))
    seconds(step, [ready] * min(10, steps))
    ratios, images_per_s = [], []
    for epoch in range(1, repeats + 1):
        synthetic = seconds(step, [ready] * steps)
        loaded = seconds(step, batches(data, settings, CPU, SEED, epoch))
        ratios.append(synthetic / loaded)
        images_per_s.append(BATCH * steps / loaded)
    return {
        "of_synthetic": statistics.median(ratios),
        "ratios": ratios,
        "images_per_s": statistics.median(images_per_s),
    }


def training_step(model: nn.Module, settings: FitSettings) -> Callable[[Batch], None]:
    """One step of gradient descent, as the training loop makes it."""
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(model, settings)

    def step(batch: Batch) -> None:
        with safe_convolutions():
            loss = label_loss(model(batch.images).float(), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[Batch], None], drawn: Iterable[Batch]) -> float:
    """Seconds of a step on each batch that is drawn."""
    start = time.perf_counter()
    for batch in drawn:
        step(batch)
    return time.perf_counter() - start


def input_pipeline(bench: Bench) -> None:
    """Measure the input pipeline."""
    rows = pipeline_rate(bench.size(RATED, RATED[:1]), bench.size(5, 2), bench.size(60, 2))
    described = bench.described("--rate")
    bench.store(input_pipeline={k: described[k] for k in ("command", "hardware")} | {"rows": rows})


def distilled(bench: Bench, images: Path, work: Path, settings: Iterable[str]) -> None:
    """Train the teacher, distil the student, and store both results."""
    data = f"data=folder:{images}"
    teacher = run("teacher.yaml", work / "teacher", [data, *bench.size((), QUICK_TEACHER)])
    checkpoint = f"stages.0.checkpoint={work / 'teacher' / 'model.safetensors'}"
    student = [data, checkpoint, *bench.size((), QUICK_STUDENT), *settings]
    result = run("student3.yaml", work / "student3", student)
    bench.store(
        command=bench.command("--data", "DIR"),
        data=bench.size(
            "CIFAR-10 (JPEG), test split of 10,000 images, one run (seed 0)", "100 digits"
        ),
        hardware=result["hardware"],
        versions=result["versions"],
        teacher_training={"stages": teacher["stages"], "wall_s": teacher["wall_s"]},
        **{f"student3_{key}" if key == "stages" else key: result[key] for key in KEYS},
    )
    show(result)


def show(result: Row) -> None:
    """One line: the three accuracies."""
    teacher, student, control = (result[k]["accuracy"] for k in ("teacher", "student", "control"))
    print(
        f"teacher {teacher:.2%}, student 3 {student:.2%}, its control {control:.2%}; the "
        "source reports 66.9 %"
    )


def main() -> None:
    """Run the parts that the options select."""
    options = parser(__doc__)
    add_images(options, "--data")
    options.add_argument("--work", type=Path, help="default: runs/benchmark-distill")
    options.add_argument("--rate", action="store_true")
    options.add_argument(
        "--set", action="append", default=[], help="over student3.yaml, e.g. stages.2.epochs=20"
    )
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    if arguments.rate or arguments.data is None:
        input_pipeline(bench)
        return
    with tempfile.TemporaryDirectory() as name:
        images = bench.images(arguments.data, Path(name))
        runs = bench.size(ROOT / "runs" / "benchmark-distill", Path(name))
        distilled(bench, images, arguments.work or runs, arguments.set)


if __name__ == "__main__":
    main()
