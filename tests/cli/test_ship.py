"""export, quantize, predict and bench from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from edgecompress import __version__
from edgecompress.measure import runtime
from edgecompress.proportions import interval
from tests.cli.test_cli import one_line, run

ORIENTATION = 0x0112
"""The EXIF tag of it."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a LeNet-5, trained for three epochs."""
    folder = tmp_path_factory.mktemp("trained")
    done = run("train", "lenet5", "--epochs", 3, "-o", "a", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "a"


def test_a_file_that_reads_images_as_they_are(trained: Path, tmp_path: Path) -> None:
    for name, more in (("plain", []), ("embedded", ["--embed-preprocess", "--min-ort", "1.14"])):
        done = run("export", trained, *more, "-o", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    plain, embedded = (tmp_path / name / "model-fp32.onnx" for name in ("plain", "embedded"))
    assert onnx.load(str(embedded)).ir_version == 8
    said = runtime.load(embedded).metadata.entries
    assert said["version"] == __version__
    assert len(said["recipe"]) == 64
    assert 0.8 < float(said["validation_accuracy"]) <= 1
    both = [
        json.loads(run("predict", path, "--data", "digits", "--json", cwd=tmp_path).stdout)[
            "accuracy"
        ]
        for path in (plain, embedded)
    ]
    assert both[0] == both[1]
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    for path in (plain, embedded):
        assert run("predict", path, "large.png", cwd=tmp_path).returncode == 0
    told = run("bench", embedded, "--blocks", 5, "--processes", 5, "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "1.8" in one_line(run("export", trained, "--min-ort", "1.3", "-o", "x", cwd=tmp_path), 2)
    assert "opset 18" in one_line(
        run("export", trained, "--min-ort", "1.12", "--embed-preprocess", "-o", "x", cwd=tmp_path),
        2,
    )
    assert not (tmp_path / "x").exists()


def test_int8_that_is_slower_does_not_ship(trained: Path, tmp_path: Path) -> None:
    """A LeNet-5 is so small that the quantization of its activations costs more than int8 saves:
    fp32 is chosen.
    """
    done = run("quantize", trained, "--sensitivity", "-o", "q", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {row["format"]: row for row in result["formats"]}
    assert set(rows) == {"fp32", "fp16", "int8-qdq"}
    assert rows["int8-qdq"]["bytes"] < rows["fp16"]["bytes"] < rows["fp32"]["bytes"]
    if rows["int8-qdq"]["p50_ms"] > 1.2 * rows["fp32"]["p50_ms"]:
        assert result["format"] != "int8-qdq"
    table = result["int8"]["sensitivity"]
    assert {row["layer"] for row in table} == {
        "features.0",
        "features.3",
        "classifier.1",
        "classifier.3",
        "classifier.5",
    }
    assert [row["drop"] for row in table] == sorted((row["drop"] for row in table), reverse=True)
    assert (
        "What each layer costs when it is quantized" in (tmp_path / "q" / "report.html").read_text()
    )


def test_layers_stay_in_float_where_the_accuracy_asks_for_it(trained: Path, tmp_path: Path) -> None:
    """The source network is made so that one layer cannot be quantized: an outlier a thousand times
    its other inputs.
    """
    from edgecompress import checkpoint

    model, manifest = checkpoint.load(trained / "model.safetensors")
    weight = model.classifier[3].weight.data
    weight[0] *= 3000
    model.classifier[3].bias.data[
        0
    ] = -1e4  # tanh(-large) = -1: the channel is a constant that the rest can do without
    model.classifier[5].weight.data[:, 0] = 0
    checkpoint.save(tmp_path / "odd.safetensors", model, manifest.model, manifest.notes)
    done = run(
        "quantize",
        "odd.safetensors",
        "--quantize",
        "int8",
        "--max-drop",
        "0%",
        "--strict",
        "-o",
        "q",
        cwd=tmp_path,
    )
    result = json.loads((tmp_path / "q" / "result.json").read_text())
    left = result["int8"]["left_in_float"]
    row = next(r for r in result["formats"] if r["format"] == "int8-qdq")
    fp32 = next(r for r in result["formats"] if r["format"] == "fp32")
    assert row["float_layers"] == left
    assert row["accuracy"] >= fp32["accuracy"]
    if left:
        assert done.returncode == 3
        assert f"left in float: {', '.join(left)}" in done.stdout
    else:
        assert done.returncode == 0


def test_fine_tuning_on_the_int8_grid(trained: Path, tmp_path: Path) -> None:
    done = run(
        "quantize",
        trained,
        "--quantize",
        "int8",
        "--qat-epochs",
        1,
        "-o",
        "q",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["qat"]["scales"]) == {
        "features.0",
        "features.3",
        "classifier.1",
        "classifier.3",
        "classifier.5",
    }
    assert result["int8"]["qat"]["top1_agreement"] > 0.95
    metadata = runtime.load(tmp_path / "q" / "model.onnx").metadata
    assert (metadata.integer("weight_bits"), metadata.text("cpu")) == (7, "any")
    assert (
        "Fine-tuned on its grid: the int8-qdq file" in (tmp_path / "q" / "report.html").read_text()
    )


def test_what_says_nothing_is_refused(trained: Path, digits_folder: Path, tmp_path: Path) -> None:
    """Options about int8 where none is made; another data's classes; images and files of which it
    is not known how they are read.
    """

    def refused(*arguments: object) -> str:
        line = one_line(run(*arguments, cwd=tmp_path), 2)
        assert not (tmp_path / "q").exists()
        return line

    assert "method, max_drop, strict say how int8 is made" in refused(
        "quantize",
        trained,
        "--quantize",
        "fp16",
        "--strict",
        "--max-drop",
        "1%",
        "--calibration",
        "entropy",
        "-o",
        "q",
    )
    assert "--qat-epochs tunes for int8" in refused(
        "quantize", trained, "--quantize", "none", "--qat-epochs", 1, "-o", "q"
    )
    folders = [
        tmp_path / "cats" / split / f"c{n}" for split in ("train", "test") for n in range(10)
    ]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for copy in range(12):
            Image.fromarray(np.full((32, 32, 3), 5 * number + copy, np.uint8)).save(
                folder / f"{copy}.png"
            )
    line = refused("export", trained, "--data", f"folder:{tmp_path / 'cats'}", "-o", "q")
    assert "has learned the classes of digits (demo) ('0')" in line
    assert "('c0'): give the --data that it was trained on" in line
    assert run("export", trained, "-o", "e", cwd=tmp_path).returncode == 0
    grey = load_digits().images[0] / 16
    Image.fromarray((grey * 65535).round().astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray((grey * 255).round().astype(np.uint8)).save(tmp_path / "usual.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned a quarter to the right, as phones store portraits
    turned = Image.open(tmp_path / "usual.png").transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    turned.save(tmp_path / "lying.png")
    names = ("deep.png", "usual.png", "turned.png", "lying.png")
    deep, usual, upright, lying = json.loads(
        run("predict", "e", *names, "--json", cwd=tmp_path).stdout
    )["predictions"]
    assert (deep["label"], deep["probability"]) == (usual["label"], usual["probability"])
    assert (upright["label"], upright["probability"]) == (usual["label"], usual["probability"])
    assert lying["probability"] != usual["probability"]
    assert "--image-size is about --data" in refused(
        "predict", "e/model-fp32.onnx", "deep.png", "--image-size", 64
    )
    plain = onnx.load(str(tmp_path / "e" / "model-fp32.onnx"))
    del plain.metadata_props[:]
    onnx.save(plain, tmp_path / "plain.onnx")
    assert "no input normalisation" in refused("predict", "plain.onnx", "--data", "digits")


def test_a_folder_gives_an_accuracy(trained: Path, tmp_path: Path) -> None:
    assert run("export", trained, "-o", "e", cwd=tmp_path).returncode == 0
    digits = load_digits()
    for number in range(40):
        place = tmp_path / "photos" / str(digits.target[number])
        place.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).resize(
            (32, 32), Image.Resampling.BILINEAR
        )
        grey.save(place / f"{number}.png")
    told = json.loads(run("predict", "e/model-fp32.onnx", "photos", "--json", cwd=tmp_path).stdout)
    right = sum(row["label"] == row["class"] for row in told["predictions"])
    assert told["images"] == 40
    assert told["accuracy"] == right / 40 > 0.7
    assert run("predict", "e/model-fp32.onnx", "photos", cwd=tmp_path).stdout.startswith(
        f"accuracy {right / 40:.4f} (95 % "
    )
    assert told["n"] == 40
    assert told["ci95"] == pytest.approx(interval(right, 40))
    (tmp_path / "photos" / "0" / "new.HEIC").write_bytes(b"0")
    assert "not read: 1 .HEIC" in run("predict", "e", "photos", cwd=tmp_path).stderr
    (tmp_path / "photos" / "cat").mkdir()
    assert "class 'cat'" in one_line(run("predict", "e/model-fp32.onnx", "photos", cwd=tmp_path), 2)
    (tmp_path / "empty").mkdir()
    assert "no image" in one_line(run("predict", "e/model-fp32.onnx", "empty", cwd=tmp_path), 2)


def test_bench_says_how_far_the_ceiling_is(trained: Path, tmp_path: Path) -> None:
    assert run("export", trained, "-o", "e", cwd=tmp_path).returncode == 0
    options = ("--blocks", 5, "--processes", 5, "--batch-size", "1,4", "--threads", 1)
    done = run("bench", "e/model-fp32.onnx", *options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["profile"]
    assert found["macs"] == 651_720, (
        "LeNet-5 on 32x32 RGB: 352,800 + 240,000 + 48,000 + 10,080 + 840"
    )
    assert [row["batch"] for row in found["batches"]] == [1, 4]
    assert 0 < found["share_of_ceiling"] < 1
    assert found["cold_start_ms"] == pytest.approx(
        found["load_ms"] + found["first_run_ms"], abs=0.01
    )
    assert found["peak_rss_bytes"] >= found["rss_before_load_bytes"] > 10_000_000
    assert "of the ceiling" in run("bench", "e/model-fp32.onnx", *options, cwd=tmp_path).stdout
    wrong = run(
        "bench",
        "e/model-fp32.onnx",
        "--against",
        "e/model-fp32.onnx",
        "--batch-size",
        "1,4",
        cwd=tmp_path,
    )
    assert "give one size" in one_line(wrong, 2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images of several sizes in each of two classes, in `photos/`."""
    generator = np.random.default_rng(0)
    for number, label in enumerate(("dark", "light")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for count in range(10):
            shape = (40 + count, 50, 3)
            pixels = generator.integers(128 * number, 128 * number + 128, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{count}.png")
    return tmp_path / "photos"


def test_a_checkpoint_brings_data_size_and_normalisation(photos: Path, tmp_path: Path) -> None:
    options = ("--data", "folder:photos", "--normalize", "imagenet", "--resize", 40)
    train = run(
        "train", "lenet5", *options, "--image-size", 36, "--epochs", 1, "-o", "t", cwd=tmp_path
    )
    assert train.returncode == 0, train.stderr
    assert "14 training, 2 validation, 4 test images of 2 classes, 36x36" in train.stderr
    more = {"prune": ("--epochs", 1), "distill": ("lenet5", "--epochs", 1)}
    for verb in ("export", "quantize", "prune", "profile", "distill"):
        done = run(verb, "t", *more.get(verb, ()), "-o", verb, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        kept = (tmp_path / verb / "resolved.yaml").read_text()
        assert "data: folder:photos  # checkpoint t" in kept
        assert "image_size: 36  # checkpoint t" in kept
        assert "resize: 40  # checkpoint t" in kept
        assert "normalize: imagenet  # checkpoint t" in kept
    line = one_line(run("export", "t", "-o", "e", "--image-size", 20, cwd=tmp_path), 2)
    assert "leave --image-size, --resize and --normalize out" in line
    photos.rename(tmp_path / "moved")
    line = one_line(run("quantize", "t", "-o", "q", cwd=tmp_path), 2)
    assert line.endswith("trained on 'folder:photos', which is not here: give --data folder:PATH")
    assert run("export", "t", "--data", "folder:moved", "-o", "m", cwd=tmp_path).returncode == 0


def test_images_of_the_training_are_named_as_such(photos: Path, tmp_path: Path) -> None:
    options = ("--data", "folder:photos", "--epochs", 1, "-o", "t", "-q")
    assert run("train", "lenet5", *options, cwd=tmp_path).returncode == 0
    assert run("export", "t", "-o", "e", "-q", cwd=tmp_path).returncode == 0
    said = run("predict", "e", "photos", cwd=tmp_path)
    assert said.returncode == 0
    assert "holds images that 'e/model-fp32.onnx' was trained on" in said.stderr
    (tmp_path / "e" / "model-fp32.onnx").rename(tmp_path / "alone.onnx")
    assert "was trained on" in run("predict", "alone.onnx", "photos", cwd=tmp_path).stderr
    photos.rename(tmp_path / "others")
    assert "was trained on" not in run("predict", "alone.onnx", "others", cwd=tmp_path).stderr
