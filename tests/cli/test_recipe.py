"""Recipes from the command line: those of the first source at both scales, and the weights that
they name.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_cli import one_line, run
from tests.cli.test_prune import NARROW_VGG, RECIPES, result_of


@pytest.mark.parametrize(
    "name",
    [
        "distill-student1",
        "distill-student2",
        "distill-student3",
        "transfer-vgg16",
        "transfer-densenet121",
    ],
)
def test_the_distillations_of_the_source_run_at_small_scale(
    name: str, few: str, tmp_path: Path
) -> None:
    """Figures 3.2-3.8; VGG16 and DenseNet-121 as narrow twins."""
    (tmp_path / "narrow.py").write_text(NARROW_VGG + NARROW_DENSENET)
    more = ["--set", f"data={few}", "--set", "stages.0.epochs=1"]
    if name.startswith("distill"):
        more += ["--set", "stages.0.model=narrow.py:make", "--set", "stages.2.epochs=1"]
    else:
        more += ["--set", f"model=narrow.py:{'make' if name.endswith('16') else 'dense'}"]
    done = run("run", RECIPES / f"{name}.yaml", *more, "-o", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "r")
    if name.startswith("distill"):
        assert result["distill"]["loss"] == "softmax-mse"
        assert result["distill"]["source"]["accuracy"] in (0.615, 0.62, 0.669)
        assert result["control"]["epochs"] == 1
    page = (tmp_path / "r" / "report.html").read_text()
    assert "<h2>Training</h2>" in page, "the complexity graph"


NARROW_DENSENET = """
def dense(num_classes):
    from torchvision.models.densenet import DenseNet
    widths = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8}
    return DenseNet(**widths, num_classes=num_classes)
"""


def test_full_scale_is_one_option_and_names_the_weights_to_place(tmp_path: Path) -> None:
    """Without a network, ImageNet's weights are asked for by name and place; everything else of the
    source's settings is resolved.
    """
    small = ["--variant", "full", "--set", "data=digits"]
    done = run("run", RECIPES / "transfer-vgg16.yaml", *small, "-o", "r", cwd=tmp_path)
    line = one_line(done, 4)
    assert "place the file vgg16-397923af.pth" in line
    assert "weights/vgg16-397923af.pth" in line
    done = run(
        "run",
        RECIPES / "transfer-vgg16.yaml",
        *small,
        "--set",
        "stages.0.weights=null",
        "--dry-run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for text in (
        "image_size: 224",
        "resize: 256",
        "normalize: imagenet",
        "train_last: 5",
        "learning_rate: 0.001",
        "nesterov: false",
    ):
        assert text in done.stdout
    assert "unknown variant 'big': did you mean full" in one_line(
        run("run", RECIPES / "transfer-vgg16.yaml", "--variant", "big", cwd=tmp_path), 2
    )


def test_every_recipe_is_valid_at_both_scales() -> None:
    from edgecompress.recipe import read

    for path in sorted(RECIPES.parent.rglob("*.yaml")):
        read(path)
        if "variants:" in path.read_text():
            full = ("cifar10", "cifar100", "imagewoof", "sine", "folder:imagenet")
            assert read(path, variant="full").data in full, path


def test_the_bias_free_teacher_takes_every_weight_but_the_biases(tmp_path: Path) -> None:
    """Listing D.1 of the source, with a file of tensors in place of the download."""
    import torch

    from edgecompress.models import ModelSource, build
    from edgecompress.models.weights import load_into_

    with torch.device("meta"):
        plain, bare = (
            build(ModelSource(name, 10, (3, 32, 32))) for name in ("vgg16", "vgg16-nobias")
        )
    assert {k for k in plain.state_dict() if not k.endswith("bias")} == set(bare.state_dict())
    assert all(
        v.shape == bare.state_dict()[k].shape
        for k, v in plain.state_dict().items()
        if not k.endswith("bias")
    )
    narrow = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    naked = torch.nn.Sequential(
        torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    )
    load_into_(naked, narrow.state_dict(), "file")
    assert all(
        torch.equal(naked.state_dict()[k], narrow.state_dict()[k]) for k in naked.state_dict()
    )
