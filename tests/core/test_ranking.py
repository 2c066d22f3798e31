"""The best channels for given widths, with ties decided by position."""

from __future__ import annotations

import torch

from edgecompress.core import ChannelGroup
from edgecompress.core.ranking import best, best_first, mask_of, top, top_overall

FIRST = ChannelGroup("first", 4, ())
SECOND = ChannelGroup("second", 3, ())
SCORES = {FIRST: torch.tensor([4.0, 1.0, 3.0, 4.0]), SECOND: torch.tensor([10.0, 30.0, 20.0])}


def test_channels_are_ordered_by_score_and_ties_by_position() -> None:
    assert best_first(SCORES[FIRST]).tolist() == [0, 3, 2, 1]
    assert best(SCORES[FIRST], 1).tolist() == [True, False, False, False]
    assert mask_of(torch.tensor([2, 0, 1]), 2).tolist() == [True, False, True]


def test_top_takes_the_best_of_each_group() -> None:
    keep = top(SCORES, {"first": 2})
    assert keep[FIRST].tolist() == [True, False, False, True]
    assert keep[SECOND].all(), "a group that is not named keeps all channels"
    assert top(SCORES, {"first": 99})[FIRST].all()


def test_top_overall_ranks_scores_relative_to_their_group() -> None:
    """Means are 3 and 20, so the relative scores are 4/3, 1/3, 1, 4/3 and 0.5, 1.5, 1."""
    keep = top_overall(SCORES, {"first": 2, "second": 1}, {})
    assert keep[FIRST].tolist() == [True, False, False, True]
    assert keep[SECOND].tolist() == [False, True, False]
    keep = top_overall(SCORES, {"first": 2, "second": 2}, {})
    assert keep[FIRST].tolist() == [True, False, True, True], "the earlier group wins a tie"
    assert keep[SECOND].tolist() == [False, True, False]


def test_top_overall_respects_floors_before_the_total() -> None:
    keep = top_overall(SCORES, {"first": 1, "second": 1}, {"first": 1, "second": 2})
    assert int(keep[FIRST].sum()) == 1
    assert keep[SECOND].tolist() == [False, True, True]


def test_top_overall_without_competing_groups_keeps_everything() -> None:
    assert all(mask.all() for mask in top_overall(SCORES, {}, {}).values())
