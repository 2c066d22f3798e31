"""The ledger of labels: fresh labels, couplings, freezes, and axes that are entered twice."""

from __future__ import annotations

import torch

from edgecompress.core.ledger import Ledger, anonymous, flat, narrowed, spread, varies


def test_labels_are_fresh_and_start_above_the_anonymous_one() -> None:
    ledger = Ledger()
    assert ledger.fresh(3).tolist() == [1, 2, 3]
    assert ledger.fresh(2).tolist() == [4, 5]
    assert ledger.count == 6
    ((anonymous_label, _),) = ledger.freezes
    assert anonymous_label.tolist() == [0]


def test_coupling_broadcasts_and_leaves_equal_labels_out() -> None:
    ledger = Ledger()
    ledger.couple(torch.tensor([[1], [2]]), torch.tensor([[1, 3]]))
    assert ledger.edges[0].tolist() == [[1, 3], [2, 1], [2, 3]]


def test_a_layer_that_is_called_twice_has_its_labels_coupled() -> None:
    ledger = Ledger()
    first, second = ledger.fresh(2), ledger.fresh(2)
    assert ledger.record("conv", "in", first) is first
    assert ledger.record("conv", "in", second) is first
    assert ledger.edges[0].tolist() == [[1, 3], [2, 4]]


def test_freezing_opens_containers() -> None:
    ledger = Ledger()
    ledger.freeze({"a": [torch.tensor([2, 2]), None], "b": (torch.tensor([3]), 1)}, "reason")
    assert [(labels.tolist(), why) for labels, why in ledger.freezes[1:]] == [
        ([2], "reason"),
        ([3], "reason"),
    ]


def test_labels_that_vary_along_two_dimensions_are_frozen() -> None:
    ledger = Ledger()
    plain = torch.tensor([[1, 2]]).expand(4, 2)
    assert ledger.along(plain, 1, "fc").tolist() == [1, 2]
    assert len(ledger.freezes) == 1
    assert ledger.along(torch.tensor([[1, 2], [3, 4]]), 1, "fc").tolist() == [1, 2]
    assert ledger.freezes[1][1] == "fc reads channels along more than one dimension"


def test_expanded_dimensions_are_narrowed_and_carry_nothing() -> None:
    labels = spread(torch.tensor([1, 2, 3]), 1, torch.empty(2, 3, 5))
    assert labels.shape == (2, 3, 5)
    assert narrowed(labels).shape == (1, 3, 1)
    assert [varies(labels, dim) for dim in range(3)] == [False, True, False]


def test_anonymous_labels_keep_containers() -> None:
    pair = anonymous((torch.empty(2, 3), 7))
    assert isinstance(pair, tuple)
    assert pair[0].shape == (2, 3)
    assert not pair[0].any()
    assert pair[1] is None
    assert flat([1, (2, {"a": 3})]) == [1, 2, 3]
