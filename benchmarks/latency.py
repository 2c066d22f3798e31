"""int8 against fp32: latency and accuracy.

    # int8 against fp32, ours and ONNX Runtime's own tool, 2 threads; 3 minutes
    python benchmarks/latency.py --int8
    # their accuracies on trained networks; 10 minutes
    python benchmarks/latency.py --int8 --data DIR
    # int8 files that are not what they seem, on VGG16 and ResNet-50; 17 minutes
    python benchmarks/latency.py --traps

DIR is CIFAR-10 (JPEG) with train/ and test/: the accuracies are of a ResNet-20 and a VGG16-BN
trained on 1,000 images of each class. Results go to benchmarks/results/latency.json.
"""

from __future__ import annotations

from common import add_images, bench_of, parser
from int8_files import int8, traps


def main() -> None:
    """Run the parts that the options select."""
    options = parser(__doc__)
    options.add_argument("--int8", action="store_true")
    add_images(options, "--data")
    options.add_argument("--epochs", type=int, default=12)
    options.add_argument("--traps", action="store_true")
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    if arguments.int8:
        int8(bench, arguments.data, bench.size(arguments.epochs, 1))
    if arguments.traps:
        traps(bench)


if __name__ == "__main__":
    main()
