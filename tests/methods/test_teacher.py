"""The cache of a fixed teacher: when it is read, when it must not be, and that it says what the
teacher says.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgecompress.data import DataSet, Images, Preprocess, load_data
from edgecompress.data.images import Augmentation
from edgecompress.errors import EdgecompressError
from edgecompress.methods import teacher as module
from edgecompress.methods.distill import TopK
from edgecompress.methods.teacher import FixedTeacher, digest
from edgecompress.models import ModelSource, build
from edgecompress.train.batches import batches
from edgecompress.train.settings import FitSettings

CPU = torch.device("cpu")


def small_data(augmentation: Augmentation | None = None) -> DataSet:
    """The first 200 training digits."""
    data = load_data("digits")
    return replace(
        data,
        train=Images(data.train.pixels[:200], data.train.labels[:200]),
        augmentation=augmentation or Augmentation(),
    )


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(ModelSource("resnet20", 10, (3, 32, 32)))


@pytest.mark.parametrize(
    "augmentation", [Augmentation(), Augmentation(flip=True, shift=3, cutout=6)]
)
def test_it_says_what_the_teacher_says_of_the_very_pixels_of_the_batch(
    augmentation: Augmentation, tmp_path: Path
) -> None:
    data, model = small_data(augmentation), network()
    teacher = FixedTeacher(model, data, CPU, view_seed=3, folder=tmp_path)
    settings = FitSettings(epochs=3, batch_size=64, view_seed=3, views=2)
    seen = set()
    for epoch in (1, 2, 3):
        for batch in batches(data, settings, CPU, seed=5, epoch=epoch):
            seen.add(batch.view)
            with torch.no_grad():
                torch.testing.assert_close(
                    teacher(batch), model(batch.images), atol=1e-5, rtol=1e-5
                )
    assert seen == {0, 1}
    assert teacher.computed == (2 if augmentation.active else 1)


def test_a_second_run_reads_and_anything_that_changes_the_values_does_not(tmp_path: Path) -> None:
    data, model = small_data(Augmentation(flip=True)), network()
    batch = next(batches(data, FitSettings(1, 64), CPU, 0, 1))

    def ask(**changes: object) -> FixedTeacher:
        made = FixedTeacher(
            **{"model": model, "data": data, "device": CPU, "folder": tmp_path, **changes}
        )  # type: ignore[arg-type]
        made(batch)
        return made

    assert (ask().computed, ask().read) == (1, 1)
    other = replace(data, train=Images(data.train.pixels.flip(0), data.train.labels))
    for changes in (
        {"model": network(1)},
        {"data": other},
        {"view_seed": 1},
        {"augmentation": Augmentation(shift=1)},
        {"top_k": 2},
        {"preprocess": Preprocess((0.5,) * 3, (0.5,) * 3)},
    ):
        assert ask(**changes).computed == 1, changes
    assert ask(top_k=2, temperature=2.0).computed == 1
    next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_mean += 1
    assert ask().computed == 1, "a BatchNorm's statistics are part of the teacher"


def test_a_damaged_table_is_made_again(tmp_path: Path) -> None:
    data, model = small_data(), network()
    batch = next(batches(data, FitSettings(1, 64), CPU, 0, 1))
    first = FixedTeacher(model, data, CPU, folder=tmp_path)(batch)
    (stored,) = tmp_path.glob("*.safetensors")
    stored.write_bytes(stored.read_bytes()[:100])
    again = FixedTeacher(model, data, CPU, folder=tmp_path)
    torch.testing.assert_close(again(batch), first)
    assert (again.computed, again.read) == (1, 0)


def test_the_largest_logits_are_stored_with_what_is_left(tmp_path: Path) -> None:
    data, model = small_data(), network()
    batch = next(batches(data, FitSettings(1, 64), CPU, 0, 1))
    dense = FixedTeacher(model, data, CPU)(batch)
    kept = FixedTeacher(model, data, CPU, top_k=3, temperature=2.0, folder=tmp_path)(batch)
    assert isinstance(kept, TopK)
    assert isinstance(dense, torch.Tensor)
    torch.testing.assert_close(kept.values, dense.topk(3, 1).values)
    whole = torch.cat([kept.values / 2, kept.rest[:, None]], 1).logsumexp(1)
    torch.testing.assert_close(whole, (dense / 2).logsumexp(1))
    all_of_them = FixedTeacher(model, data, CPU, top_k=3, folder=tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.glob("*")) < 200 * 3 * 8 + 200 * 4 + 2000
    all_of_them.untouched()


def test_a_teacher_that_reads_images_in_its_own_way() -> None:
    """The student's images are 32×32, the teacher was trained on 16×16 with other statistics."""
    data, preprocess = small_data(), Preprocess((0.1,) * 3, (0.3,) * 3, 16, 16)
    torch.manual_seed(0)
    model = build(ModelSource("resnet20", 10, (3, 16, 16)))
    batch = next(batches(data, FitSettings(1, 8), CPU, 0, 1))
    said = FixedTeacher(model, data, CPU, preprocess=preprocess)(batch)
    with torch.no_grad():
        torch.testing.assert_close(
            said, model(preprocess(data.train.pixels[batch.ids])), atol=1e-5, rtol=1e-5
        )


def test_a_teacher_that_changed_is_found_out() -> None:
    data, model = small_data(), network()
    teacher = FixedTeacher(model, data, CPU)
    assert teacher.untouched() == digest(model)
    model.train()
    with pytest.raises(EdgecompressError, match="teacher changed"):
        teacher.untouched()
    model.eval()
    next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_var *= 2
    with pytest.raises(EdgecompressError, match="teacher changed"):
        teacher.untouched()


def test_the_oldest_tables_go_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_data()
    batch = next(batches(data, FitSettings(1, 8), CPU, 0, 1))
    FixedTeacher(network(0), data, CPU, folder=tmp_path)(batch)
    (first,) = tmp_path.glob("*.safetensors")
    monkeypatch.setattr(module, "CACHE_LIMIT", first.stat().st_size + 10)
    FixedTeacher(network(1), data, CPU, folder=tmp_path)(batch)
    assert not first.exists()
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_teacher_whose_code_changed_is_another_teacher(tmp_path: Path) -> None:
    """The same tensors, another function: the answers on disk are not its own."""

    class Turned(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module, sign: float) -> None:
            super().__init__()
            self.inner, self.sign = inner, sign

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.sign * self.inner(x)  # type: ignore[no-any-return]

    data, inner = small_data(), network()
    batch = next(batches(data, FitSettings(1, 8), CPU, 0, 1))
    first = FixedTeacher(Turned(inner, 1.0), data, CPU, folder=tmp_path)(batch)
    other = FixedTeacher(Turned(inner, -1.0), data, CPU, folder=tmp_path)
    torch.testing.assert_close(other(batch), -first)
    assert other.computed == 1


def test_the_colour_of_holes_is_part_of_the_view(tmp_path: Path) -> None:
    data = small_data(Augmentation(cutout=8))
    one = FixedTeacher(network(), data, CPU, preprocess=data.preprocess, folder=tmp_path)
    shifted = replace(data, preprocess=Preprocess((0.9,) * 3, (0.3,) * 3))
    other = FixedTeacher(network(), shifted, CPU, preprocess=data.preprocess, folder=tmp_path)
    assert one.key(0) != other.key(0)


def test_few_tables_stay_in_memory_when_they_are_on_disk(tmp_path: Path) -> None:
    data = small_data(Augmentation(flip=True))
    teacher = FixedTeacher(network(), data, CPU, folder=tmp_path)
    for epoch in range(1, 8):
        teacher(next(batches(data, FitSettings(8, 8), CPU, 0, epoch)))
    assert len(teacher._tables) == module.TABLES_IN_MEMORY
    teacher(next(batches(data, FitSettings(8, 8), CPU, 0, 1)))
    assert (teacher.computed, teacher.read) == (7, 1)
