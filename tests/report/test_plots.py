"""Plots for reports."""

from __future__ import annotations

import matplotlib

from edgecompress.report import plots

PROFILE = {
    "levels": [0.2, 0.4],
    "layers": {"a": [0.1, 0.3], "b": [0.3, 0.5]},
    "accuracy": [0.9, 0.5],
    "unpruned": 0.95,
    "tolerance": 0.1,
    "holds_to": 0.2,
}


def test_a_plot_is_an_element_and_the_same_each_time() -> None:
    first, second = (plots.boxes({"a": [1.0, 2.0, 3.0]}, "loss", floor=0.5) for _ in range(2))
    assert first == second
    assert first.startswith("<svg")
    assert "loss" in first


def test_the_settings_of_the_caller_stay() -> None:
    """A program that draws with matplotlib itself keeps its own back end and style."""
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    page = plots.sparsity_curve(PROFILE) + plots.sparsity_bars(PROFILE)  # type: ignore[arg-type]
    page += plots.widths({"a": [4, 2], "b": [8, 8]})
    assert page.count("<svg") == 3
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend
