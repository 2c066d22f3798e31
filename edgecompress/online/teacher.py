"""The teacher's end of a lesson: serves a network to the students that connect.

A frozen teacher answers each student by itself; one that trains takes all its students along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from torch import nn

from edgecompress.data import DataSet, Preprocess
from edgecompress.errors import UsageError
from edgecompress.online import wire
from edgecompress.online.lesson import FrozenLesson, Lesson
from edgecompress.online.registry import StudentRegistry
from edgecompress.online.secure import Tls
from edgecompress.online.session import StudentSession
from edgecompress.online.stream import Stream
from edgecompress.online.training import PATIENCE, UNFINISHED, TrainingLesson
from edgecompress.train.fit import FitResult, Hooks
from edgecompress.train.settings import FitSettings

SPARE_THREADS = 4
"""Streams beyond one per student, for those that are refused or about to end."""


class Teacher:
    """Serves one lesson to `students` students. `train` are the settings of its own training, None
    for a frozen teacher.

    `data` may be None for a frozen teacher that receives all pixels; it then needs `preprocess`
    and `classes`. `cut` are the hooks `cut`, `mend` and `eligible` of a training in which it is
    pruned. States are saved below `states`; `own` says what else they depend on, and with `resume`
    the lesson there continues.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSet | None,
        *,
        preprocess: Preprocess | None = None,
        classes: int | None = None,
        train: FitSettings | None = None,
        students: int = 1,
        states: Path | None = None,
        own: Mapping[str, object] | None = None,
        resume: bool = False,
        cut: Hooks | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        if preprocess is None:
            if data is None:
                raise ValueError("a teacher without data needs its preprocess")
            preprocess = data.preprocess
        self.students = students
        self._registry = StudentRegistry(
            students, states, own or {}, training=train is not None, resume=resume
        )
        self._training: TrainingLesson | None = None
        self._lesson: Lesson
        if train is not None and data is not None:
            self._training = TrainingLesson(
                model, data, preprocess, train, cut or Hooks(), self._registry, note
            )
            self._lesson = self._training
        else:
            count = len(data.classes) if data is not None else int(classes or 0)
            self._lesson = FrozenLesson(model, data, preprocess, count, self._registry, note)

    @property
    def model(self) -> nn.Module:
        """The network; after a training, the trained one."""
        return self._lesson.model

    @property
    def result(self) -> FitResult | None:
        """The result of the training; None before its end, and for a frozen teacher."""
        return self._training.result if self._training is not None else None

    @property
    def sessions(self) -> dict[str, StudentSession]:
        """The students by name."""
        return self._registry.sessions

    @property
    def steps(self) -> int:
        """Steps of the training, or answers that a frozen network computed."""
        return self._lesson.steps

    @property
    def payload_bytes(self) -> int:
        """Bytes of all payloads."""
        return self._lesson.traffic.payload_bytes

    @property
    def wire_bytes(self) -> int:
        """Bytes of all frames, sent and received."""
        return self._lesson.traffic.wire_bytes

    def attend(
        self, requests: Iterator[wire.Frame], context: grpc.ServicerContext
    ) -> Iterator[wire.Frame]:
        """One student's stream: the method of the gRPC service."""
        return Stream(self._lesson, requests, context).frames()

    def teach(self, timeout: float | None = None) -> None:
        """Wait for all students, teach them to the end, and return when all are done.

        Raises `EdgecompressError` when one stays away for `timeout` seconds. Whatever ends the
        lesson early, its students receive the reason.
        """
        registry = self._registry
        patience = None if timeout is None else max(timeout, PATIENCE)
        try:
            registry.wait_until(registry.complete, timeout, "not all students have connected")
            self._lesson.run(patience)
            registry.wait_until(registry.all_done, patience, UNFINISHED, while_away=True)
        except Exception as error:
            registry.fail(" ".join(str(error).split())[:200] or type(error).__name__)
            raise


def serve(teacher: Teacher, address: str, tls: Tls | None) -> tuple[grpc.Server, int]:
    """Start to serve at `address` (host:port, port 0 for any). Returns the server and its port;
    stop it with `server.stop(grace)`.

    Raises `UsageError` for an address that cannot be served.
    """
    server = grpc.server(
        ThreadPoolExecutor(teacher.students + SPARE_THREADS),
        options=(*wire.CHANNEL_OPTIONS, ("grpc.so_reuseport", 0)),
    )
    handler = grpc.stream_stream_rpc_method_handler(
        teacher.attend, request_deserializer=wire.decode, response_serializer=wire.encode
    )
    service = grpc.method_handlers_generic_handler(wire.SERVICE, {wire.METHOD: handler})
    server.add_generic_rpc_handlers((service,))
    try:
        port = (
            server.add_insecure_port(address)
            if tls is None
            else server.add_secure_port(address, tls.server())
        )
    except RuntimeError as error:
        raise UsageError(_not_served(address, tls)) from error
    if not port:
        raise UsageError(_not_served(address, tls))
    server.start()
    return server, port


def _not_served(address: str, tls: Tls | None) -> str:
    keys = "" if tls is None else ", or --tls-cert and --tls-key are no pair of PEM files"
    return f"address '{address}' cannot be served: it is in use, or not of this machine{keys}"
