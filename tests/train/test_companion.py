"""The companion of a network that has none."""

from __future__ import annotations

from torch import nn

from edgecompress.train.companion import Companion, NoCompanion


def test_nothing_trains_follows_or_is_kept() -> None:
    companion: Companion = NoCompanion()
    layer = nn.Linear(1, 1)
    companion.attach(layer)
    assert list(companion.parameters()) == []
    assert list(companion.follow(layer, layer, {})) == []
    assert companion.kept() == {}
    companion.take({})
    companion.detach()
