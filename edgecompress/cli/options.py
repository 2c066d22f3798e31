"""Options of the command line, made from the fields of settings: declared once, taken by every
verb.

A field's name is the option (`learning_rate` is `--learning-rate`), its description the help, its
type the choices. A verb takes groups of options and gets the values that were typed, each of which
knows where it belongs in the recipe and where it came from.

    @verb(DATA, options_of(TrainStage, "Training"), RUN)
    def train(model: Model, given: Given) -> None:
        given.launch("train", [given.draft(TrainStage)], model=model)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    TypeVar,
    get_type_hints,
)

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from edgecompress.cli.console import env
from edgecompress.cli.parsed import bound, cli_type, literals, member, parameter_of
from edgecompress.errors import UsageError
from edgecompress.run.stage import RunSettings, Strict
from edgecompress.stages.fields import flag

if TYPE_CHECKING:
    from edgecompress.recipe import Place, Recipe

S = TypeVar("S", bound=Strict)
ORIGINS = {"COMMANDLINE": "command line", "ENVIRONMENT": "environment"}
"""How `resolved.yaml` calls the sources of values that a user gave."""


class RunOptions(Strict):
    """What decides how a run is carried out, and nothing of its result."""

    output: Path | None = flag(("-o", "--output"), None)
    """Folder of the run."""
    resume: bool = False
    """Continue the run in -o."""
    exist_ok: bool = False
    """Overwrite a folder in use."""
    as_json: bool = flag(("--json",), False)
    """Print one JSON object, nothing else."""
    verbose: bool = flag(("-v", "--verbose"), False)
    """Show widths, parameters and MACs of each layer."""
    quiet: bool = flag(("-q", "--quiet"), False)
    """No progress."""
    debug: bool = False
    """Tracebacks."""
    dry_run: bool = False
    """Check everything, print the recipe, do nothing."""


@dataclass(frozen=True)
class Option:
    """One option: its parameter and flags, the type that the command line parses, and the field of
    the settings `kinds` that it sets.
    """

    name: str
    flags: tuple[str, ...]
    parsed_as: Any
    default: Any
    help: str
    panel: str
    field: str
    kinds: tuple[type[Strict], ...]
    least: float | None = None
    most: float | None = None
    words: tuple[str, ...] = ()
    """Words that the shell completes, where other text is allowed too."""

    def parameter(self) -> inspect.Parameter:
        """The parameter that Typer reads."""
        flags = self.flags
        if self.default is True:
            flags = (*flags[:-1], f"{flags[-1]}/--no-{flags[-1].removeprefix('--')}")
        info = typer.Option(
            *flags,
            help=self.help,
            envvar=env(self.flags[-1].lstrip("-").replace("-", "_")),
            show_envvar=False,
            rich_help_panel=self.panel,
            show_default=self.default not in (None, False),
            min=self.least,
            max=self.most,
            autocompletion=self._completed if self.words else None,
        )
        kind = inspect.Parameter.KEYWORD_ONLY
        annotation = Annotated[self.parsed_as, info]  # type: ignore[name-defined]
        return inspect.Parameter(self.name, kind, default=self.default, annotation=annotation)

    def _completed(self, incomplete: str) -> list[str]:
        return [word for word in self.words if word.startswith(incomplete)]


class Draft(dict[str, Any]):
    """Values for one settings object, with the option that gave each and where that came from."""

    def __init__(self, values: Mapping[str, Any], sources: Mapping[str, tuple[str, str]]) -> None:
        super().__init__(values)
        self.sources = dict(sources)


class Given:
    """The values that a user gave to the options of a verb."""

    def __init__(
        self, context: typer.Context, options: Sequence[Option], values: Mapping[str, Any]
    ) -> None:
        self.options = {option.name: option for option in options}
        self.values = {name: _plain(value) for name, value in values.items()}
        self.origins: dict[str, str] = {}
        for name in self.options:
            source = context.get_parameter_source(name)
            if source is not None and source.name in ORIGINS:
                self.origins[name] = ORIGINS[source.name]

    def __getitem__(self, name: str) -> Any:
        """The value of the option `name`, its default where it was not given."""
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        """Was the option `name` given?"""
        return name in self.origins

    def draft(self, kind: type[Strict], **values: Any) -> Draft:
        """The given options of `kind`, and `values`, which the verb itself decides.

        A stage's draft has its name.
        """
        draft = Draft({}, {})
        if (stage := kind.model_fields.get("stage")) is not None:
            draft["stage"] = stage.default
        for name, origin in self.origins.items():
            option = self.options[name]
            if kind in option.kinds:
                draft[option.field] = self.values[name]
                draft.sources[option.field] = (option.flags[-1], origin)
        draft.update({name: value for name, value in values.items() if value is not None})
        return draft

    def launch(
        self,
        command: str,
        stages: Sequence[Mapping[str, object]],
        *,
        model: str,
        checkpoint: Path | None = None,
    ) -> None:
        """Check and run the recipe of `stages`. What is not given of the data is that of the run
        that left `checkpoint`.
        """
        from edgecompress.cli.launch import launch

        launch(
            *self.recipe(command, stages, model=model, checkpoint=checkpoint), self.run_options()
        )

    def recipe(
        self,
        command: str,
        stages: Sequence[Mapping[str, object]],
        *,
        model: str,
        checkpoint: Path | None = None,
        others: Sequence[Mapping[str, object]] = (),
    ) -> tuple[Recipe, dict[str, str]]:
        """The recipe of `stages`, checked, and where each of its values came from. Options may
        belong to `others`, the stages of further runs of the same command.
        """
        from edgecompress.cli.checkpoints import trained_on
        from edgecompress.recipe import validate

        known = {} if checkpoint is None else trained_on(checkpoint, self)
        values = self.draft(RunSettings, command=command, model=model, stages=list(stages), **known)
        places = dict(_places(values))
        elsewhere = {flag for _, (flag, _) in _places(list(others))}
        self._check_placed({flag for flag, _ in places.values()} | elsewhere, stages)
        flags = {place: option for place, (option, _) in places.items()}
        recipe = validate(values, command, options=flags)
        origins = {".".join(map(str, place)): origin for place, (_, origin) in places.items()}
        kept = dict.fromkeys(known, f"checkpoint {checkpoint}")
        return recipe, {"model": "command line", **kept, **origins}

    def _check_placed(self, placed: set[str], stages: Sequence[Mapping[str, object]]) -> None:
        """Raises `UsageError` for a typed option that reached no place of the recipe: it would be
        ignored without a word. The environment is for all verbs.
        """
        for name, origin in self.origins.items():
            option = self.options[name]
            typed = origin == ORIGINS["COMMANDLINE"]
            if typed and option.flags[-1] not in placed and RunOptions not in option.kinds:
                names = ", ".join(str(stage["stage"]) for stage in stages)
                raise UsageError(
                    f"{option.flags[-1]} does not apply here: none of the stages of this run "
                    f"({names}) takes it; leave it out"
                )

    def run_options(self) -> RunOptions:
        """How the run is carried out."""
        return self.settings(RunOptions)

    def settings(self, kind: type[S]) -> S:
        """The given options of `kind` over its defaults. Raises `UsageError` with all errors."""
        from edgecompress.recipe import problems

        draft = self.draft(kind)
        try:
            return kind.model_validate(draft)
        except ValidationError as error:
            flags: dict[Place, str] = {
                (name,): option for name, (option, _) in draft.sources.items()
            }
            raise UsageError(problems(error, "options", {}, flags)) from error


def _places(value: object, path: Place = ()) -> Iterable[tuple[Place, tuple[str, str]]]:
    """(place in the recipe, (option, origin)) of every value that an option gave."""
    if isinstance(value, Draft):
        for name, source in value.sources.items():
            yield (*path, name), source
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _places(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _places(inner, (*path, number))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def options_of(
    kind: type[Strict],
    panel: str,
    *,
    only: Sequence[str] | None = None,
    without: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    also: Sequence[type[Strict]] = (),
) -> list[Option]:
    """The options of the fields of `kind`, shown in the group `panel`.

    `only` and `without` choose fields, `renamed` gives fields other option names, `also` names
    settings whose fields of the same names get the values too.
    """
    options = []
    for name, field in kind.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        chosen = name in only if only is not None else not extra.get("recipe_only")
        if name == "stage" or not chosen or name in without:
            continue
        option = _option(name, field, panel, (kind, *also), (renamed or {}).get(name))
        options.append(option)
    return options


def _option(
    name: str, field: FieldInfo, panel: str, kinds: tuple[type[Strict], ...], other: str | None
) -> Option:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    own: Any = extra.get("flags", [f"--{name.replace('_', '-')}"])
    flags = (f"--{other.replace('_', '-')}",) if other else tuple(own)
    kind, default = cli_type(field), None if field.default == () else field.default
    if kind is str and default is not None:
        default = str(default)
    return Option(
        name=other or parameter_of(flags),
        flags=flags,
        parsed_as=kind if isinstance(default, bool) else kind | None if default is None else kind,
        default=member(kind, default),
        help=" ".join((field.description or "").split()).removesuffix("."),
        panel=panel,
        field=name,
        kinds=kinds,
        least=bound(field, "ge") if kind in (int, float) else None,
        most=bound(field, "le") if kind in (int, float) else None,
        words=tuple(extra.get("words", literals(field.annotation))) if kind is str else (),  # type: ignore[arg-type]
    )


DATA = options_of(
    RunSettings, "Data", only=("data", "image_size", "resize", "normalize", "task", "skip_bad")
)
"""Which images, and how they are read."""
TIME = options_of(RunSettings, "Run", only=("time",))
"""How long a run may take."""
RUN = [
    *options_of(RunSettings, "Run", only=("seed", "device", "threads")),
    *options_of(RunOptions, "Run"),
]
"""How a run is carried out."""


def verb(*groups: Sequence[Option]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that takes the options of `groups` besides its own arguments; it gets their values
    as `given`.
    """
    options = [option for group in groups for option in group]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = [
            p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(function).parameters.values()
            if p.name != "given"
        ]

        def command(**values: Any) -> None:
            context = values.pop("context")
            mine = {parameter.name: values.pop(parameter.name) for parameter in own}
            function(**mine, given=Given(context, options, values))

        parameters = [_CONTEXT, *own, *(option.parameter() for option in options)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        return command

    return decorate


_CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def for_kinds(options: Sequence[Option], *kinds: type[Strict]) -> list[Option]:
    """The same options for other settings."""
    return [replace(option, kinds=kinds) for option in options]
