"""What a run keeps on disk, stage by stage: facts as JSON, networks as checkpoints with digests.

A stage is complete when its `stage.json` stands, which is written last. The runner goes on with
what was *read back* from disk, so a run that was killed and resumed cannot differ from one that was
not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import JsonValue, TypeAdapter

from edgecompress import checkpoint, files
from edgecompress.errors import EdgecompressError
from edgecompress.methods.teacher import digest
from edgecompress.run.directory import RunDirectory
from edgecompress.run.stage import Stage
from edgecompress.run.state import Network, State

ROLES = ("model", "teacher")
"""The networks of a state."""


@dataclass(frozen=True)
class StoredNetwork:
    """A network on disk: its checkpoint (a path in the run directory), and its digest."""

    file: str
    digest: str


@dataclass(frozen=True)
class Ledger:
    """What the runner knows of a run: digests of what it reads, seconds and memory so far, and the
    networks of the state by role.
    """

    data_digest: str
    input_digests: Mapping[str, str]
    spent_s: float = 0.0
    peak_rss_bytes: int = 0
    networks: Mapping[str, StoredNetwork] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """A complete stage as it stands on disk: its facts without networks, what follows, the
    ledger.
    """

    facts: Mapping[str, JsonValue]
    follow: tuple[Mapping[str, JsonValue], ...]
    ledger: Ledger


_STORED = TypeAdapter(Stored)
_FACTS = {
    name: TypeAdapter(kind) for name, kind in get_type_hints(State).items() if name not in ROLES
}


def check_declared(stage: str, before: State, after: State, ledger: Ledger) -> dict[str, str]:
    """Digests of the networks of `after` by role.

    Raises `EdgecompressError` where a network that `stage` did not declare as changed is not the
    one that is stored: it was changed in place.
    """
    for role in ROLES:
        given: Network | None = getattr(before, role)
        if given is not None and digest(given.module) != ledger.networks[role].digest:
            raise EdgecompressError(
                f"stage {stage} changed the {role} that it was given in place: this is a bug of "
                "that stage, which must change a copy and return it"
            )
    networks = {role: getattr(after, role) for role in ROLES}
    return {role: digest(n.module) for role, n in networks.items() if n is not None}


def write(
    run: RunDirectory,
    folder: Path,
    after: State,
    digests: Mapping[str, str],
    follow: tuple[Stage, ...],
    ledger: Ledger,
) -> Stored:
    """Write a complete stage into `folder`; networks that are stored already are only named."""
    known = {stored.digest: stored for stored in ledger.networks.values()}
    networks: dict[str, StoredNetwork] = {}
    for role, value in digests.items():
        network: Network = getattr(after, role)
        same = known.get(value)
        if same is None or not _stored_alike(run, same, network):
            same = _save(run, folder / f"{role}.safetensors", network, value)
            known[value] = same
        networks[role] = same
    ledger = replace(ledger, networks=networks)
    stored = Stored(
        facts_of(after),
        tuple(stage.model_dump(mode="json") for stage in follow),
        ledger,
    )
    files.write_json(folder / "stage.json", _STORED.dump_python(stored, mode="json"))
    return stored


def _stored_alike(run: RunDirectory, stored: StoredNetwork, network: Network) -> bool:
    """Does the checkpoint of equal tensors name the same source, read pixels the same way?"""
    manifest = checkpoint.read_manifest(run.root / stored.file)
    preprocess = checkpoint.preprocess_of(manifest)
    return (manifest.model, preprocess) == (network.source, network.preprocess)


def _save(run: RunDirectory, path: Path, network: Network, value: str) -> StoredNetwork:
    preprocess = network.preprocess
    notes: checkpoint.Notes = {} if preprocess is None else {"preprocess": preprocess.as_dict()}
    checkpoint.save(path, network.module, network.source, notes)
    return StoredNetwork(str(path.relative_to(run.root)), value)


def facts_of(state: State) -> dict[str, JsonValue]:
    """Everything in `state` but its networks, as JSON."""
    known = [f.name for f in fields(state) if f.name in _FACTS]
    return {name: _FACTS[name].dump_python(getattr(state, name), mode="json") for name in known}


def read(folder: Path) -> Stored | None:
    """The complete stage in `folder`, or None where there is none."""
    path = folder / "stage.json"
    if not path.is_file():
        return None
    return _STORED.validate_python(json.loads(path.read_text(encoding="utf-8")))


def restore(run: RunDirectory, stored: Stored, before: State, named: frozenset[str]) -> State:
    """The state that a complete stage left. Code of the user's runs only if its model is `named`.

    Raises `EdgecompressError` where a stored network is not the one that was written.
    """
    facts: dict[str, Any] = {
        name: _FACTS[name].validate_python(value) for name, value in stored.facts.items()
    }
    networks = {
        role: _load(run, role, kept, named) for role, kept in stored.ledger.networks.items()
    }
    empty = dict.fromkeys(ROLES)
    return replace(before, **{**empty, **facts, **networks})


def _load(run: RunDirectory, role: str, kept: StoredNetwork, named: frozenset[str]) -> Network:
    path = run.root / kept.file
    manifest = checkpoint.read_manifest(path)
    name = manifest.model.name
    module, _ = checkpoint.load(path, allow_code=name if name in named else None)
    if digest(module) != kept.digest:
        raise EdgecompressError(
            f"'{path}' does not hold the {role} that was written there: the file changed, or the "
            f"network keeps state that a checkpoint cannot hold; start a new run"
        )
    return Network(module, manifest.model, checkpoint.preprocess_of(manifest))
