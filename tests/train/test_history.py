"""Rows of epochs."""

from __future__ import annotations

from edgecompress.train.history import EpochRow


def test_a_row_is_its_columns_in_order_and_comes_back_from_them() -> None:
    row = EpochRow(2, 0.5, 0.6, 0.9, 1e-3, 1.5, 1000, cut=3)
    assert list(row.as_dict()) == [
        "epoch",
        "train_loss",
        "validation_loss",
        "validation_accuracy",
        "learning_rate",
        "seconds",
        "params",
        "cut",
    ]
    assert EpochRow(**row.as_dict()) == row
