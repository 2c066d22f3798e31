"""One tree of errors with fixed exit codes, and names that come with the nearest known ones."""

from __future__ import annotations

import pytest

from edgecompress import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.EdgecompressError, 1),
        (errors.UsageError, 2),
        (errors.UnknownNameError, 2),
        (errors.TargetMissedError, 3),
        (errors.EnvironmentMissingError, 4),
        (errors.InterruptedRunError, 130),
    ],
)
def test_exit_codes(kind: type[errors.EdgecompressError], code: int) -> None:
    assert kind.exit_code == code
    assert issubclass(kind, errors.EdgecompressError)


def test_the_nearest_names_are_offered() -> None:
    error = errors.UnknownNameError("model", "vgg61", ["vgg16", "vgg11", "lenet5"])
    assert str(error) == "unknown model 'vgg61': did you mean vgg16, vgg11?"
    error = errors.UnknownNameError("model", "xyz", ["b", "a"], "(or a file)")
    assert str(error) == "unknown model 'xyz': did you mean a, b? (or a file)"
    assert str(errors.UnknownNameError("model", "xyz", [])) == "unknown model 'xyz'"


def test_the_innermost_line_of_the_user_is_blamed() -> None:
    def inner() -> None:
        raise ValueError("first line\nsecond line")

    with pytest.raises(ValueError, match="first") as caught:
        inner()
    text = errors.blamed(caught.value)
    assert text.startswith("ValueError: first line (test_errors.py:")
    assert text.endswith(': raise ValueError("first line\\nsecond line"))')
    assert errors.blamed(KeyError()) == "KeyError"
