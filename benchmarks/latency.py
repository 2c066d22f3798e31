"""int8 against fp32: latency and accuracy.

    # int8 against fp32, ours and ONNX Runtime's own tool, 2 threads; 3 minutes
    python benchmarks/latency.py --int8
    # their accuracies on trained networks; 10 minutes
    python benchmarks/latency.py --int8 --data DIR
    # 7 bits, 8 bits and U8U8 of a trained network: accuracy on validation, speed; 3 minutes
    python benchmarks/latency.py --ranges CHECKPOINT --data DIR
    # int8 files that are not what they seem, on VGG16 and ResNet-50; 17 minutes
    python benchmarks/latency.py --traps

DIR is CIFAR-10 (JPEG) with train/ and test/: the accuracies are of a ResNet-20 and a VGG16-BN
trained on 1,000 images of each class. Results go to benchmarks/results/latency.json.
"""

from __future__ import annotations

from pathlib import Path

from common import SMOKE_IMAGES, add_images, bench_of, parser
from int8_files import int8, ranges, traps


def main() -> None:
    """Run the parts that the options select."""
    options = parser(__doc__)
    options.add_argument("--int8", action="store_true")
    add_images(options, "--data")
    options.add_argument("--epochs", type=int, default=12)
    options.add_argument("--traps", action="store_true")
    options.add_argument("--ranges", type=Path, metavar="CHECKPOINT")
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    if arguments.int8:
        int8(bench, arguments.data, bench.size(arguments.epochs, 1))
    if arguments.ranges is not None or bench.smoke:
        ranges(bench, arguments.ranges, arguments.data or SMOKE_IMAGES)
    if arguments.traps:
        traps(bench)


if __name__ == "__main__":
    main()
