"""The cache of a fixed teacher: when it is read, when it must not be, and that it holds the
teacher's logits.
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
from edgecompress.methods.distill import learning_from
from edgecompress.methods.sources import TopK
from edgecompress.methods.teacher import FixedTeacher, digest
from edgecompress.models import ModelSource, build
from edgecompress.train.batches import batches
from edgecompress.train.fit import fit
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
def test_the_table_holds_the_teachers_logits_for_the_pixels_of_the_batch(
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
                    teacher.logits(batch), model(batch.images), atol=1e-5, rtol=1e-5
                )
    assert seen == {0, 1}
    assert teacher.computed == (2 if augmentation.active else 1)


def test_a_second_run_reads_and_anything_that_changes_the_values_does_not(tmp_path: Path) -> None:
    data, model = small_data(Augmentation(flip=True)), network()
    batch = next(batches(data, FitSettings(1, 64), CPU, 0, 1))

    def used(**changes: object) -> FixedTeacher:
        teacher = FixedTeacher(
            **{"model": model, "data": data, "device": CPU, "folder": tmp_path, **changes}
        )  # type: ignore[arg-type]
        teacher.logits(batch)
        return teacher

    assert (used().computed, used().read) == (1, 1)
    flipped = replace(data, train=Images(data.train.pixels.flip(0), data.train.labels))
    for changes in (
        {"model": network(1)},
        {"data": flipped},
        {"view_seed": 1},
        {"augmentation": Augmentation(shift=1)},
        {"top_k": 2},
        {"preprocess": Preprocess((0.5,) * 3, (0.5,) * 3)},
    ):
        assert used(**changes).computed == 1, changes
    assert used(top_k=2, temperature=2.0).computed == 1
    next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_mean += 1
    assert used().computed == 1, "a BatchNorm's statistics are part of the teacher"


def test_a_damaged_table_is_computed_again(tmp_path: Path) -> None:
    data, model = small_data(), network()
    batch = next(batches(data, FitSettings(1, 64), CPU, 0, 1))
    first = FixedTeacher(model, data, CPU, folder=tmp_path).logits(batch)
    (stored,) = tmp_path.glob("*.safetensors")
    stored.write_bytes(stored.read_bytes()[:100])
    second = FixedTeacher(model, data, CPU, folder=tmp_path)
    torch.testing.assert_close(second.logits(batch), first)
    assert (second.computed, second.read) == (1, 0)


def test_the_largest_logits_are_stored_with_the_sum_of_the_rest(tmp_path: Path) -> None:
    data, model = small_data(), network()
    batch = next(batches(data, FitSettings(1, 64), CPU, 0, 1))
    dense = FixedTeacher(model, data, CPU).logits(batch)
    kept = FixedTeacher(model, data, CPU, top_k=3, temperature=2.0, folder=tmp_path).logits(batch)
    assert isinstance(kept, TopK)
    assert isinstance(dense, torch.Tensor)
    torch.testing.assert_close(kept.values, dense.topk(3, 1).values)
    total = torch.cat([kept.values / 2, kept.rest[:, None]], 1).logsumexp(1)
    torch.testing.assert_close(total, (dense / 2).logsumexp(1))
    stored = FixedTeacher(model, data, CPU, top_k=3, folder=tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.glob("*")) < 200 * 3 * 8 + 200 * 4 + 2000
    stored.untouched()


def test_a_teacher_that_reads_images_in_its_own_way() -> None:
    """The student's images are 32×32, the teacher was trained on 16×16 with other statistics."""
    data, preprocess = small_data(), Preprocess((0.1,) * 3, (0.3,) * 3, 16, 16)
    torch.manual_seed(0)
    model = build(ModelSource("resnet20", 10, (3, 16, 16)))
    batch = next(batches(data, FitSettings(1, 8), CPU, 0, 1))
    logits = FixedTeacher(model, data, CPU, preprocess=preprocess).logits(batch)
    with torch.no_grad():
        torch.testing.assert_close(
            logits, model(preprocess(data.train.pixels[batch.ids])), atol=1e-5, rtol=1e-5
        )


def test_a_teacher_that_changed_is_detected() -> None:
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


def test_the_oldest_tables_are_removed_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_data()
    batch = next(batches(data, FitSettings(1, 8), CPU, 0, 1))
    FixedTeacher(network(0), data, CPU, folder=tmp_path).logits(batch)
    (first,) = tmp_path.glob("*.safetensors")
    monkeypatch.setattr(module, "CACHE_LIMIT", first.stat().st_size + 10)
    FixedTeacher(network(1), data, CPU, folder=tmp_path).logits(batch)
    assert not first.exists()
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_teacher_whose_code_changed_is_a_different_teacher(tmp_path: Path) -> None:
    """The same tensors, a different function: the logits on disk are not its own."""

    class Turned(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module, sign: float) -> None:
            super().__init__()
            self.inner, self.sign = inner, sign

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.sign * self.inner(x)  # type: ignore[no-any-return]

    data, inner = small_data(), network()
    batch = next(batches(data, FitSettings(1, 8), CPU, 0, 1))
    first = FixedTeacher(Turned(inner, 1.0), data, CPU, folder=tmp_path).logits(batch)
    turned = FixedTeacher(Turned(inner, -1.0), data, CPU, folder=tmp_path)
    torch.testing.assert_close(turned.logits(batch), -first)
    assert turned.computed == 1


def test_a_teacher_in_bfloat16_has_tables_of_its_own(tmp_path: Path) -> None:
    data = small_data()
    batch = next(batches(data, FitSettings(1, 64), CPU, 0, 1))
    exact = FixedTeacher(network(), data, CPU, folder=tmp_path).logits(batch)
    half = FixedTeacher(network(), data, CPU, precision="bf16", folder=tmp_path)
    rounded = half.logits(batch)
    assert (half.computed, half.read) == (1, 0)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_the_colour_of_holes_is_part_of_the_view(tmp_path: Path) -> None:
    data = small_data(Augmentation(cutout=8))
    first = FixedTeacher(network(), data, CPU, preprocess=data.preprocess, folder=tmp_path)
    shifted = replace(data, preprocess=Preprocess((0.9,) * 3, (0.3,) * 3))
    second = FixedTeacher(network(), shifted, CPU, preprocess=data.preprocess, folder=tmp_path)
    assert first.key(0) != second.key(0)


def test_few_tables_stay_in_memory_when_they_are_on_disk(tmp_path: Path) -> None:
    data = small_data(Augmentation(flip=True))
    teacher = FixedTeacher(network(), data, CPU, folder=tmp_path)
    for epoch in range(1, 8):
        teacher.logits(next(batches(data, FitSettings(8, 8), CPU, 0, epoch)))
    assert len(teacher._tables) == module.TABLES_IN_MEMORY
    teacher.logits(next(batches(data, FitSettings(8, 8), CPU, 0, 1)))
    assert (teacher.computed, teacher.read) == (7, 1)


def test_training_a_student_does_not_touch_the_teacher() -> None:
    data, model = load_data("digits"), network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    student = build(ModelSource("lenet5", 10, (3, 32, 32)))
    loss = learning_from(FixedTeacher(model, data, CPU))
    fit(student, data, loss, FitSettings(epochs=1, batch_size=256), seed=0, device=CPU)
    assert not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_progress_is_reported_per_chunk() -> None:
    steps: list[tuple[int, int]] = []
    data = small_data()
    teacher = FixedTeacher(network(), data, CPU, on_step=lambda *step: steps.append(step))
    teacher.logits(next(batches(data, FitSettings(1, 8), CPU, 0, 1)))
    assert steps == [(1, 1)], "200 images are one chunk"
