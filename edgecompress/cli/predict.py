"""`edgecompress predict model.onnx IMAGE...` or `--data NAME`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typing_extensions import TypedDict

from edgecompress.cli.checkpoints import onnx_in
from edgecompress.cli.console import (
    Debug,
    ImageSize,
    Json,
    SkipBad,
    Threads,
    print_json,
    print_line,
)
from edgecompress.errors import UsageError
from edgecompress.measure.prediction import Prediction
from edgecompress.proportions import interval

if TYPE_CHECKING:
    from edgecompress.measure.runtime import Runtime
    from edgecompress.measure.score import Score


class Predictions(TypedDict, total=False):
    """What is printed: the labels of images, and the accuracy where their classes are known."""

    model: str
    predictions: list[Prediction]
    accuracy: float
    images: int
    n: int
    ci95: list[float]


def predict(
    model: Annotated[Path, typer.Argument(help="an .onnx file, or the folder of a run")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="image files; or a folder: with one folder per class, the accuracy"),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="accuracy on the test split of this data")
    ] = None,
    image_size: ImageSize = None,
    skip_bad: SkipBad = False,
    threads: Threads = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Labels and probabilities of images, or the accuracy on a data set's test split."""
    from edgecompress.measure import runtime, trials

    if bool(images) == (data is not None):
        raise UsageError("predict needs images or --data, not both: give IMAGE... or --data digits")
    if data is None and image_size is not None:
        raise UsageError(
            "--image-size is about --data: of images the file itself says how it reads them"
        )
    path = onnx_in(model)
    if (warning := trials.first_load(path)) is not None:
        print_line(f"warning: {warning}", sys.stderr)
    loaded = runtime.load(path, threads=threads)
    if data is not None:
        from edgecompress.measure.score import score_on

        _show_score(score_on(loaded, data, image_size, skip_bad), as_json)
        return
    paths = images or []
    folder = next((path for path in paths if path.is_dir()), None)
    _check(loaded, paths, folder)
    files: list[tuple[Path, str | None]] = [(path, None) for path in paths]
    if folder is not None:
        files = _files(folder, loaded, skip_bad)
    _show(_predicted(loaded, files), folder, as_json)


def _check(loaded: Runtime, paths: list[Path], folder: Path | None) -> None:
    """Raises `UsageError` for a file that reads no images, and for a folder that does not fit."""
    if loaded.metadata.text("task") == "regression":
        raise UsageError(
            f"'{loaded.path}' answers with numbers, not classes, and reads no images: give --data"
        )
    if folder is None:
        return
    if len(paths) > 1:
        raise UsageError(
            f"'{folder}' is a folder beside other images: give one folder, or image files"
        )
    if loaded.metadata.integers("heads"):
        raise UsageError(
            f"'{loaded.path}' has several heads, and a folder's classes are of one: give images, "
            "or --data A+B"
        )
    if (trained := _trained_on(loaded, folder)) is not None:
        print_line(
            f"'{folder}' holds images that '{loaded.path}' was trained on, so this says little of "
            f"new ones: --data {trained} reads the test split alone",
            sys.stderr,
        )


def _trained_on(loaded: Runtime, folder: Path) -> str | None:
    """The data `folder:DIR` of the file, where `folder` is DIR or its training split.

    The run's recipe beside the file has the path of DIR, the file's metadata its name only.
    """
    place = folder.resolve()
    known = _data_of_run(loaded.path.parent)
    if known is not None and known.startswith("folder:"):
        root = Path(known.removeprefix("folder:")).resolve()
        held_out = (root / "train").is_dir() and place != root and root / "train" != place
        return known if root in (place, place.parent) and not held_out else None
    label = loaded.metadata.text("data")
    names = {f"folder:{place.name}"}
    if place.name == "train":
        names.add(f"folder:{place.parent.name}")
    return label if label in names else None


def _data_of_run(folder: Path) -> str | None:
    """The data in the recipe of the run in `folder`, if there is one."""
    import yaml

    from edgecompress.recipe import parsed, read_text

    try:
        values = parsed(read_text(folder / "resolved.yaml"))[0]
    except (OSError, ValueError, yaml.YAMLError):
        return None
    name = values.get("data") if isinstance(values, dict) else None
    return name if isinstance(name, str) else None


def _predicted(loaded: Runtime, files: list[tuple[Path, str | None]]) -> Predictions:
    """The predictions for images, some with their class, and how many of these are right."""
    from edgecompress.measure.prediction import classifier

    reader = classifier(loaded)
    rows: list[Prediction] = []
    right: list[bool] = []
    for path, wanted in files:
        row = reader.predict(path)
        if wanted is not None:
            row["class"] = wanted
            right.append(row.get("label") == wanted)
        rows.append(row)
    predictions: Predictions = {"model": str(loaded.path), "predictions": rows}
    if right:
        count = len(right)
        low, high = interval(sum(right), count)
        accuracy = sum(right) / count
        predictions |= {"accuracy": accuracy, "images": count, "n": count, "ci95": [low, high]}
    return predictions


def _show(predictions: Predictions, folder: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(predictions)
        return
    if "accuracy" in predictions:
        low, high = predictions["ci95"]
        print_line(
            f"accuracy {predictions['accuracy']:.4f} (95 % {low:.4f} to {high:.4f}) on "
            f"{predictions['images']} images of {folder}"
        )
        return
    for row in predictions["predictions"]:
        heads = row.get("heads") or [{"label": row["label"], "probability": row["probability"]}]
        labels = [f"{head['label']} ({head['probability']:.1%})" for head in heads]
        print_line(f"{row['image']}: {', '.join(labels)}")


def _show_score(score: Score, as_json: bool) -> None:
    if as_json:
        print_json(score)
    elif "accuracy" in score:
        value, (low, high) = score["accuracy"], score["ci95"]
        print_line(
            f"accuracy {value:.4f} (95 % {low:.4f} to {high:.4f}) on {score['images']} test "
            f"samples of {score['data']}"
        )
    else:
        print_line(f"R² {score['metric']:.4f} on {score['images']} test samples of {score['data']}")


def _files(folder: Path, loaded: Runtime, skip_bad: bool) -> list[tuple[Path, str | None]]:
    """The images of a folder, each with its class where they stand in one folder per class (then
    all of them must be the file's).
    """
    from edgecompress import pictures

    known = loaded.metadata.texts("classes") or []
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    foreign = [path.name for path in classes if path.name not in known]
    if foreign:
        raise UsageError(
            f"folder '{folder}' has a class '{foreign[0]}', which '{loaded.path}' does not "
            f"know: it knows {', '.join(known[:8])}"
        )
    labelled: list[tuple[Path, str | None]] = []
    unread: list[Path] = []
    for place in classes or [folder]:
        label = place.name if classes else None
        images, others = pictures.sorted_pictures(place)
        labelled += [(path, label) for path in images]
        unread += others
    if unread:
        print_line(f"not read: {pictures.counted(unread)}", sys.stderr)
    if not labelled:
        raise UsageError(
            f"folder '{folder}' holds no image: allowed are {', '.join(pictures.SUFFIXES)}"
        )
    return _readable(folder, labelled) if skip_bad else labelled


def _readable(
    folder: Path, labelled: list[tuple[Path, str | None]]
) -> list[tuple[Path, str | None]]:
    """Those images that can be decoded; the others are named on stderr."""
    from edgecompress import pictures

    good: list[tuple[Path, str | None]] = []
    for path, label in labelled:
        try:
            pictures.read(path)
            good.append((path, label))
        except pictures.UNREADABLE:
            print_line(f"skipped {path}: no readable image", sys.stderr)
    if not good:
        raise UsageError(
            f"folder '{folder}' holds no image that can be read: all {len(labelled)} were skipped"
        )
    return good
