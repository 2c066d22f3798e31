"""Ctrl-C ends a command wherever it comes.

Python raises KeyboardInterrupt in whatever line runs. Where that line was called by C++ code, the
exception may come out as another one ("could not determine the shape of object type", when torch
asked a storage for its length), or not at all. The signal itself is therefore remembered.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_asked = threading.Event()
_listening: list[tuple[signal.Signals, ...]] = []
_OWN_TO_PYTHON = (signal.SIG_DFL, signal.default_int_handler)


def _end(*_: object) -> None:
    _asked.set()
    raise KeyboardInterrupt


def asked() -> bool:
    """Whether one of the signals came since they are listened to."""
    return _asked.is_set()


def check() -> None:
    """Raise KeyboardInterrupt where a signal came, whatever became of its first exception."""
    if asked():
        raise KeyboardInterrupt


@contextlib.contextmanager
def listening(*signals: signal.Signals) -> Iterator[None]:
    """Turn `signals` into KeyboardInterrupt and remember them. A signal that is ignored (as a
    shell's background jobs ignore SIGINT) or that the program handles itself stays so; only the
    main thread can listen.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = [each for each in signals if signal.getsignal(each) in _OWN_TO_PYTHON]
    previous = {each: signal.signal(each, _end) for each in caught}
    _listening.append(signals)
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
        _listening.pop()
        if not _listening:
            _asked.clear()
