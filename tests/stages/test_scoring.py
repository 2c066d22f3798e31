"""What a figure of accuracy is worth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgecompress.data import load_data
from edgecompress.data.task import Heads, Regression, Task
from edgecompress.proportions import interval
from edgecompress.run.state import FormatRow
from edgecompress.stages.scoring import on_validation, paired, score_of, weakness

DATA = load_data("digits")
LABELS = DATA.validation.labels


def logits_of(classes: torch.Tensor, count: int = 10) -> torch.Tensor:
    """Logits (N, K) that predict `classes` (N,)."""
    return torch.nn.functional.one_hot(classes, count).float()


def test_an_accuracy_has_its_number_and_interval() -> None:
    predicted = LABELS.clone()
    predicted[:7] = (predicted[:7] + 1) % 10
    score = score_of(Task(), logits_of(predicted), LABELS)
    count = len(LABELS)
    assert score["n"] == count
    assert score["accuracy"] == pytest.approx(1 - 7 / count)
    assert score["ci95"] == pytest.approx(interval(count - 7, count))


def test_a_score_in_words_names_its_samples_or_its_kind() -> None:
    count, right = len(LABELS), len(LABELS) - 7
    low, high = interval(right, count)
    said = f"{right / count:.2%} (95 % {100 * low:.1f} to {100 * high:.1f}, n {count})"
    assert on_validation(DATA, right / count) == said
    assert on_validation(load_data("sine"), 0.5) == "r2 0.5000"


def test_a_regression_has_a_loss_instead() -> None:
    outputs, labels = torch.zeros(5, 1), torch.arange(5.0)[:, None]
    score = score_of(Regression(), outputs, labels)
    assert "ci95" not in score
    assert score["loss"] == 6.0
    assert paired(Regression(), outputs, outputs, labels) is None


def test_of_two_networks_only_where_they_differ_counts() -> None:
    first, second = LABELS.clone(), LABELS.clone()
    first[:5] = (first[:5] + 1) % 10
    second[3:10] = (second[3:10] + 1) % 10
    found = paired(Task(), logits_of(first), logits_of(second), LABELS)
    assert found is not None
    assert (found.n, found.only_first, found.only_second) == (len(LABELS), 5, 3)


def test_heads_are_right_each_in_its_own() -> None:
    task, labels = Heads((2, 3)), torch.tensor([0, 1, 2, 4])
    outputs = torch.tensor(
        [
            [2.0, 1, 9, 9, 9],  # right in the first head, whatever the second says
            [2.0, 1, 0, 0, 0],
            [9.0, 9, 3, 1, 1],
            [9.0, 9, 3, 1, 1],
        ]
    )
    right = task.correct(outputs, labels)
    assert right is not None
    assert right.tolist() == [True, False, True, False]
    assert task.score(outputs, labels) == 0.5


def test_a_network_that_has_learned_nothing_is_named() -> None:
    constant = torch.zeros(len(LABELS), 10)
    constant[:, 3] = 1
    text = weakness(DATA, DATA.validation, constant)
    assert text is not None
    assert "is no better than always" in text
    assert "never predicts '0', '1', '2', '4', '5' and 4 more" in text


def test_a_class_that_is_never_predicted_is_named() -> None:
    predicted = torch.where(LABELS == 8, 3, LABELS)
    assert weakness(DATA, DATA.validation, logits_of(predicted)) == "never predicts '8'"
    assert weakness(DATA, DATA.validation, logits_of(LABELS)) is None


def test_one_image_of_forty_decides_nothing() -> None:
    row = FormatRow("int8-qdq", "f", 1, 0.9, 1.0)
    assert not row.loses_more_than(0.01)
    few = replace(row, against_fp32=paired(Task(), *_differing(40, 1)))
    many = replace(row, against_fp32=paired(Task(), *_differing(4000, 100)))
    assert not few.loses_more_than(0.01)
    assert many.loses_more_than(0.01)


def _differing(count: int, lost: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % 10
    worse = labels.clone()
    worse[:lost] = (worse[:lost] + 1) % 10
    return logits_of(labels), logits_of(worse), labels
