"""distill from the command line: every mode, what it reports, what it refuses; the source's set-ups
at small scale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml

from edgecompress import checkpoint
from tests.cli.test_cli import one_line, run
from tests.cli.test_prune import result_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small teacher (LeNet-5, 4 epochs)."""
    folder = tmp_path_factory.mktemp("teacher")
    done = run("train", "lenet5", "--epochs", 4, "-o", "t", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "t"


def distil(trained: Path, tmp_path: Path, student: str, *more: object) -> dict[str, Any]:
    done = run("distill", trained, student, *more, "-o", "d", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == result_of(tmp_path / "d")
    return result_of(tmp_path / "d")


def test_student_control_and_the_sources_figures_stand_side_by_side(
    trained: Path, tmp_path: Path
) -> None:
    result = distil(
        trained, tmp_path, "student3", "--epochs", 1, "--control", "--learning-rate", 2e-3
    )
    told = result["distill"]
    assert (told["params"], told["weights_bytes"], result["student"]["params"]) == (
        935_156,
        3_740_624,
        320_756,
    )
    assert told["source"] == {"accuracy": 0.669, "weights_bytes": 3657 * 1024, "epochs": 300}
    assert told["mode"] == "offline"
    assert told["tables_computed"] + told["tables_read"] == 1, (
        "digits are not augmented: one view, asked once"
    )
    assert 0 <= result["control"]["accuracy"] <= 1
    assert result["control"]["epochs"] == 1
    assert {row["name"] for row in result["stages"]} >= {
        "teacher lenet5",
        "control (no teacher)",
        "distill",
        "fold-pool",
    }
    page = (tmp_path / "d" / "report.html").read_text()
    for text in (
        "Against the control",
        "935,156",
        "García González (2022)",
        "The teacher is unchanged",
    ):
        assert text in page
    done = run("report", tmp_path / "d", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("predict", tmp_path / "d" / "model.onnx", "--data", "digits", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["accuracy"] == result["student"]["accuracy"]


def test_a_run_that_is_resumed_takes_its_teacher_back(trained: Path, tmp_path: Path) -> None:
    first = distil(trained, tmp_path, "lenet5", "--epochs", 1)
    for stage in sorted((tmp_path / "d").glob("0[3-9]-*/stage.json")):
        stage.unlink()
    (tmp_path / "d" / "result.json").unlink()
    done = run(
        "distill", trained, "lenet5", "--epochs", 1, "-o", "d", "--resume", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    second = json.loads(done.stdout)
    assert second["student"]["accuracy"] == first["student"]["accuracy"]
    assert second["teacher"]["accuracy"] == first["teacher"]["accuracy"]
    assert second["distill"]["teacher_digest"] == first["distill"]["teacher_digest"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"loss": "dkd"}, {"loss": "dkd", "alpha": 0.5}),
        ({"loss": "softmax-mse"}, {"temperature": 5.0, "alpha": 1.0}),
        ({"top_k": 3}, {"top_k": 3}),
        ({"features": "hint"}, {"features": "hint"}),
        ({"features": "attention", "prune_student": "40%"}, {"features": "attention"}),
        ({"features": "hint", "prune_student": "40%"}, {"features": "hint"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())),
)
def test_losses(
    trained: Path, tmp_path: Path, more: dict[str, object], told: dict[str, object]
) -> None:
    distilled = {"stage": "distill", "epochs": 3, "learning_rate": 2e-3, **more}
    stages = [
        {"stage": "teacher", "checkpoint": str(trained / "model.safetensors")},
        {"stage": "train", "epochs": 0},
        distilled if "prune_student" in more else {**distilled, "epochs": 1},
        {"stage": "export"},
    ]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"model": "lenet5", "stages": stages}))
    done = run("run", "r.yaml", "-o", "d", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "d")
    assert {key: result["distill"][key] for key in told} == told
    assert result["distill"]["validation_accuracy"] > 0.2
    names = {t.name for t in onnx.load(tmp_path / "d" / "model-fp32.onnx").graph.initializer}
    assert not any("adapter" in name for name in names)
    if "prune_student" in more:
        assert result["distill"]["params"] <= 0.6 * 706_752
        assert result["missed"] == []


@pytest.mark.parametrize("mode", ["online", "mutual"])
def test_teacher_and_student_train_together_and_both_are_cut(
    trained: Path, tmp_path: Path, mode: str
) -> None:
    more = ["--prune-student", "30%", "--prune-teacher", "30%", "--step", "20%"]
    result = distil(trained, tmp_path, "lenet5", "--mode", mode, "--epochs", 4, *more)
    assert result["distill"]["teacher_cuts"]["met"]
    assert result["teacher"]["params"] <= 0.7 * 62_006
    assert result["student"]["params"] <= 0.7 * 62_006
    rows = {row["name"]: row for row in result["stages"]}
    assert rows["teacher, trained beside"]["accuracy"] > 0.8
    assert "teacher_digest" not in result["distill"], (
        "a teacher that trains is not called unchanged"
    )


def test_a_teacher_may_begin_untrained_beside_its_student(tmp_path: Path) -> None:
    done = run(
        "distill",
        "lenet5",
        "mlp",
        "--mode",
        "online",
        "--epochs",
        1,
        "-o",
        "d",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["stages"]}
    assert rows["teacher, trained beside"]["accuracy"] > rows["teacher lenet5"]["accuracy"]


def test_a_pruned_student_learns_again(trained: Path, tmp_path: Path) -> None:
    done = run("prune", trained, "--amount", "50%", "--epochs", 0, "-o", "p", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before = checkpoint.load(tmp_path / "p" / "model.safetensors")[0]
    result = distil(trained, tmp_path, str(tmp_path / "p"), "--epochs", 2)
    assert result["student"]["params"] == sum(p.numel() for p in before.parameters())
    assert result["distill"]["validation_accuracy"] > 0.8


def test_a_student_may_read_larger_images_than_its_teacher(trained: Path, tmp_path: Path) -> None:
    result = distil(trained, tmp_path, "student1", "--epochs", 1, "--image-size", 40)
    manifest = checkpoint.read_manifest(tmp_path / "d" / "model.safetensors")
    assert manifest.model.image_shape == (3, 40, 40)
    assert result["teacher"]["accuracy"] > 0.8, (
        "the teacher is measured on the images that it reads"
    )
    done = run("predict", tmp_path / "d" / "model.onnx", "--data", "digits", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["accuracy"] == result["student"]["accuracy"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--loss", "kld"], "'--loss': 'kld' is not one of 'kl', 'softmax-mse', 'dkd'"),
        (
            ["--mode", "sideways"],
            "'--mode': 'sideways' is not one of 'offline', 'online', 'mutual'",
        ),
        (["--loss", "dkd", "--top-k", "2"], "top_k applies to loss kl"),
        (["--mode", "mutual", "--loss", "dkd"], "mode mutual has a loss of its own"),
        (["--mode", "online", "--features", "hint"], "need a fixed teacher"),
        (["--prune-teacher", "30%"], "use mode online or mutual"),
        (["--alpha", "3"], "less than or equal to 1"),
        (["--epochs", "0", "--control"], "give epochs above 0, or drop control"),
        (["--model", "lenet5"], "student 'student1' is no file: leave --model out"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(
    trained: Path, tmp_path: Path, more: list[str], text: str
) -> None:
    assert text in one_line(run("distill", trained, "student1", *more, "-o", "d", cwd=tmp_path), 2)
    assert not (tmp_path / "d").exists()


def _features_recipe(folder: Path, trained: Path) -> Path:
    path = folder / "features.yaml"
    path.write_text(
        "model: student1\nstages:\n  - stage: teacher\n    checkpoint: "
        f"{trained}/model.safetensors\n  "
        "- {stage: train, epochs: 0}\n"
        "  - stage: distill\n    epochs: 1\n    features: hint\n    feature_layers: "
        "{features.1: features.0}\n"
    )
    return path


def test_bad_teachers_are_refused_before_training(
    trained: Path, digits_folder: Path, tmp_path: Path
) -> None:
    def refused(*arguments: object) -> str:
        line = one_line(run("distill", *arguments, "-o", "d", cwd=tmp_path), 2)
        assert not (tmp_path / "d").exists()
        return line

    assert "knows 10 classes, data" in refused(
        trained, "student1", "--data", f"folder:{digits_folder}"
    )
    assert "does not exist" in refused(tmp_path / "nothing", "student1")
    assert "did you mean student1" in refused(trained, "student11")
    assert "unknown student convolution 'features.1'" in one_line(
        run("run", _features_recipe(tmp_path, trained), "-o", "e", cwd=tmp_path), 2
    )


def test_a_checkpoint_is_read_as_it_was_trained(tmp_path: Path) -> None:
    """A network trained with other statistics and another size keeps them, in every verb that takes
    it; other options are refused.
    """
    done = run(
        "train",
        "student1",
        "--epochs",
        3,
        "--learning-rate",
        2e-3,
        "--normalize",
        "imagenet",
        "--image-size",
        40,
        "-o",
        "t",
        "--json",
        cwd=tmp_path,
    )
    trained_accuracy = json.loads(done.stdout)["stages"][0]["accuracy"]
    done = run("export", "t", "-o", "e", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"][0]["accuracy"] == pytest.approx(trained_accuracy)
    metadata = {
        p.key: p.value for p in onnx.load(tmp_path / "e" / "model-fp32.onnx").metadata_props
    }
    assert json.loads(metadata["edgecompress.mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(metadata["edgecompress.image_shape"]) == [3, 40, 40]
    assert "leave --image-size" in one_line(
        run("export", "t", "--image-size", 48, "-o", "f", cwd=tmp_path), 2
    )
    options = ("--mode", "mutual", "--image-size", 32, "-o", "f")
    line = one_line(run("distill", "t", "lenet5", *options, cwd=tmp_path), 2)
    assert "the teacher reads" in line
    assert not (tmp_path / "f").exists()


def test_a_cut_that_was_not_reached_is_a_missed_target(trained: Path, tmp_path: Path) -> None:
    more = ["--prune-student", "99.99%", "--epochs", 2]
    done = run("distill", trained, "lenet5", *more, "-o", "d", cwd=tmp_path)
    assert done.returncode == 3, done.stdout
    assert "student: no epoch met the amount" in result_of(tmp_path / "d")["missed"][0]
    assert (tmp_path / "d" / "model.onnx").is_file()


OWN_CODE = """
print("own code runs")
from edgecompress.models.small import LeNet

def make(num_classes):
    return LeNet(num_classes)
"""


def test_own_code_runs_only_when_it_is_named_again(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OWN_CODE)
    done = run("train", "net.py:make", "--epochs", 1, "-o", "t", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for verb in ("export", "quantize", "profile", "shrink", "prune"):
        line = one_line(run(verb, "t", "-o", "o", cwd=tmp_path), 2)
        assert "name it again to run it: --model net.py:make" in line
    assert "--model net.py:make" in one_line(run("merge", "t", "t", "-o", "o", cwd=tmp_path), 2)
    assert "--model net.py:make" in one_line(
        run("distill", "t", "t", "--teacher-model", "net.py:make", "-o", "o", cwd=tmp_path), 2
    )
    assert "--teacher-model net.py:make" in one_line(
        run("distill", "t", "student1", "-o", "o", cwd=tmp_path), 2
    )
    assert not (tmp_path / "o").exists()
    done = run("export", "t", "--model", "net.py:make", "-o", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = run("distill", "t", "student1", "-o", "o", "--exist-ok", cwd=tmp_path)
    assert again.returncode == 2
    assert (tmp_path / "o" / "model-fp32.onnx").is_file(), "a refused run takes nothing away"


def test_a_student_that_is_cut_is_counted_as_it_is_delivered(trained: Path, tmp_path: Path) -> None:
    """Its pool is not folded away while it is cut: what the amount counts is what the recipe
    leaves.
    """
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: student1\nstages:\n  - {stage: teacher, checkpoint: "
        f"{trained}/model.safetensors}}\n  "
        "- {stage: train, epochs: 0}\n"
        "  - {stage: distill, epochs: 2, control: true, prune_student: 200kparams}\n"
    )
    done = run("run", path, "-o", "d", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "d")
    assert result["distill"]["params"] <= 200_000
    assert result["control"]["params"] == 706_752
    assert "the same without teacher and cuts" in (tmp_path / "d" / "report.html").read_text()
    assert "the same without teacher and cuts" in done.stdout
