"""Exchange features: maps travel with the logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgecompress.data import DataSet
from edgecompress.methods.distill import learning_from
from edgecompress.methods.features import FeatureLoss, default_pairs
from edgecompress.online.exchanges.features import pack_maps, unpack_maps
from edgecompress.train.fit import Hooks, fit
from tests.online.support import (
    CPU,
    SEED,
    SETTINGS,
    Frozen,
    Serve,
    assert_same,
    attend_to_the_end,
    attend_together,
    break_connection,
    feature_plan,
    new_student,
    student_network,
    teacher_network,
)


@pytest.mark.parametrize("kind", ["hint", "attention"])
def test_student_equals_that_of_one_process_after_a_break(
    kind: str, data: DataSet, serve_lesson: Serve
) -> None:
    served = serve_lesson()
    student = new_student(
        data,
        feature_plan(data, kind),
        model=student_network(data, "lenet5"),
        feature_weight=0.5,
    )
    break_connection(student, 7)
    result = attend_to_the_end(served, student, breaks=1)

    model = student_network(data, "lenet5")
    teacher = teacher_network(data).eval()
    example = torch.zeros(1, *data.image_shape)
    torch.manual_seed(SEED)
    pairs = default_pairs(model, teacher, example, example)
    logit_loss = learning_from(Frozen(teacher))
    loss = FeatureLoss.of_pairs(kind, pairs, model, teacher, data.preprocess, logit_loss, 0.5)
    hooks = Hooks(companion=loss)
    reference = fit(model, data, loss, SETTINGS, seed=SEED, device=CPU, hooks=hooks)
    assert_same(result.model, reference.model)


def test_two_students_learn_from_maps_at_once(data: DataSet, serve_lesson: Serve) -> None:
    served = serve_lesson(students=2)
    plan = feature_plan(data, "attention")
    students = {
        name: new_student(data, plan, model=student_network(data, "lenet5"), name=name)
        for name in ("one", "two")
    }
    results = attend_together(served, students)
    assert_same(results["one"].model, results["two"].model)


@pytest.mark.parametrize("codec", ["fp32", "fp16"])
def test_maps_are_packed_after_the_logits(codec: str) -> None:
    rng = np.random.default_rng(0)
    shapes = [(3, 4, 4), (1, 2, 2)]
    maps = [rng.standard_normal((5, *shape), dtype=np.float32) for shape in shapes]
    payload = pack_maps(b"logits", maps, codec)
    logits, unpacked = unpack_maps(payload, shapes, 5, codec)
    assert logits == b"logits"
    tolerance = 0 if codec == "fp32" else 1e-3
    for before, after in zip(maps, unpacked, strict=True):
        np.testing.assert_allclose(after, before, rtol=tolerance, atol=tolerance)
    for damaged in (payload[:-1], payload + b"x", b""):
        with pytest.raises(ValueError):
            unpack_maps(damaged, shapes, 5, codec)
