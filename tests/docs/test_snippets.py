"""Commands, recipes and Python snippets of the README and of docs/ work as written.

Commands are parsed by the real command line, files that they name in the repository exist, recipes
are validated, and Python snippets are run (compiled only, below `<!-- snippet: compile -->`).
"""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from edgecompress.cli.app import app
from edgecompress.recipe import read, validate

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "add-a-stage.md"),
]
FENCE = re.compile(
    r"^(?P<mark><!-- snippet: compile -->\n)?```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FOLDERS = ("recipes/", "topologies/", "deploy/", "benchmarks/", "tests/", "docs/")
"""What begins so is a path in the repository."""

SHELL = ("cd", "git")
"""Programs whose arguments are not checked."""


@dataclass(frozen=True)
class Snippet:
    """A fenced block, or a piece of inline code."""

    page: Path
    line: int
    language: str
    body: str
    compile_only: bool = False

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def fenced() -> list[Snippet]:
    """Every fenced block of every page."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start("body"))
            language, marked = match["language"], match["mark"] is not None
            found.append(Snippet(page, line, language, match["body"], marked))
    return found


def inline() -> list[Snippet]:
    """Every piece of inline code of every page."""
    found = []
    for page in PAGES:
        text = FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text("utf-8"))
        for match in INLINE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Snippet(page, line, "", match[1].replace("\\|", "|")))
    return found


def commands() -> list[tuple[str, str]]:
    """(place, command line) of every command in a block."""
    found = []
    for snippet in fenced():
        if snippet.language == "sh":
            lines = [line for line in snippet.body.splitlines() if line.strip()]
            found += [(str(snippet), part) for line in lines for part in line.split("&&")]
    return found


def mentions() -> list[tuple[str, str]]:
    """(place, text) of every command of edgecompress in prose, where arguments may be missing."""
    own = [snippet for snippet in inline() if re.match(r"edgecompress [a-z]", snippet.body)]
    return [(str(snippet), snippet.body.split("|")[0]) for snippet in own]


@cache
def command_line() -> Any:
    """The Click command behind the Typer application."""
    return typer.main.get_command(app)


def find(words: list[str]) -> tuple[str, Any, list[str]]:
    """The name of the command that `words` begin with, the command, and the remaining words."""
    command: Any = command_line()
    name = "edgecompress"
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, f"{name} has no command {words[0]}"
        name, command = f"{name} {words[0]}", command.commands[words[0]]
        words = words[1:]
    return name, command, words


def parse(words: list[str]) -> None:
    """Parse a command line of edgecompress. Raises what Click raises for a bad one."""
    name, command, rest = find(words)
    assert not hasattr(command, "commands"), f"{name} is a group"
    command.make_context(name, list(rest))


def check_script(words: list[str]) -> None:
    """`python benchmarks/NAME.py --options`: the script exists and has the options."""
    script = ROOT / words[0]
    assert script.exists(), f"{words[0]} does not exist"
    shared = script.with_name("common.py")
    sources = [path.read_text("utf-8") for path in (script, shared) if path.exists()]
    for word in words[1:]:
        if word.startswith("--"):
            assert f'"{word}"' in "".join(sources), f"{words[0]} has no option {word}"


def check(command: str) -> None:
    """One command of a page."""
    words = shlex.split(command, comments=True)
    if words and words[0] == "sudo":
        words = words[1:]
    if ">" in words:
        words = words[: words.index(">")]
    program, *rest = words
    if program == "torchrun":
        program, *rest = rest[rest.index("-m") + 1 :]
    if program == "edgecompress":
        parse(rest)
    elif program == "python":
        check_script(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert set(rest) <= set(targets), f"no target {rest}"
    elif program == "pip":
        extras = (ROOT / "pyproject.toml").read_text("utf-8")
        for name in re.findall(r"\[(.*)\]", " ".join(rest)):
            assert re.search(rf"^{name} = \[", extras, re.MULTILINE), f"no extra {name}"
    else:
        assert program in SHELL, f"unknown program {program}"
    for word in rest:
        if word.startswith(FOLDERS):
            assert (ROOT / word).exists(), f"{word} does not exist"


@pytest.mark.parametrize(
    "command", [pytest.param(text, id=f"{place} {text.strip()[:60]}") for place, text in commands()]
)
def test_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECOMPRESS_OUTPUT", raising=False)
    check(command)


@pytest.mark.parametrize("text", [pytest.param(text, id=place) for place, text in mentions()])
def test_command_in_prose(text: str) -> None:
    name, command, rest = find(text.split()[1:])
    options = {option for parameter in command.params for option in parameter.opts}
    for word in rest:
        assert not word.startswith("-") or word in options, f"{name} has no option {word}"


@pytest.mark.parametrize(
    "command",
    [
        "edgecompress comprss vgg16",
        "edgecompress compress vgg16 --targt 4MB",
        "edgecompress compress",
        "edgecompress bench a.onnx --processes 1",
        "edgecompress run recipes/nothing.yaml",
        "python benchmarks/prune.py --nothing",
        "make nothing",
        "pip install -e '.[nothing]'",
        "rm -rf /",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    with pytest.raises(Exception, match=r".+"):
        check(command)


@pytest.mark.parametrize(
    "snippet",
    [pytest.param(s, id=str(s)) for s in fenced() if s.language == "python"],
)
def test_python_snippet(snippet: Snippet) -> None:
    code = compile(snippet.body, str(snippet), "exec")
    if not snippet.compile_only:
        exec(code, {"__name__": str(snippet)})


def test_the_example_of_the_readme_halves_the_network() -> None:
    example = next(s for s in fenced() if s.page.name == "README.md" and s.language == "python")
    names: dict[str, Any] = {}
    exec(compile(example.body, str(example), "exec"), names)
    counts = [sum(p.numel() for p in names[name].parameters()) for name in ("model", "small")]
    assert type(names["small"]) is type(names["model"])
    assert 0.45 * counts[0] < counts[1] <= 0.5 * counts[0]
    assert names["small"](names["torch"].zeros(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize(
    "snippet",
    [pytest.param(s, id=str(s)) for s in fenced() if s.language == "yaml"],
)
def test_yaml_snippet(snippet: Snippet) -> None:
    values = yaml.safe_load(snippet.body)
    if isinstance(values, dict) and "stages" in values:
        validate(values, str(snippet))
        return
    for step in values:
        action = yaml.safe_load((ROOT / "deploy/ci/action.yml").read_text("utf-8"))
        assert set(step["with"]) <= set(action["inputs"])


def test_every_block_has_a_language_that_is_checked() -> None:
    for snippet in fenced():
        assert snippet.language in ("sh", "python", "yaml", "text"), str(snippet)


def test_other_programs_in_prose_exist() -> None:
    for snippet in inline():
        if re.match(r"(python benchmarks/|make [a-z]|pip install)", snippet.body):
            check(snippet.body)


def test_options_in_prose_exist() -> None:
    known = {name for command in leaves(command_line()) for p in command.params for name in p.opts}
    scripts = "".join(path.read_text("utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    for snippet in inline():
        option = re.match(r"--[a-z][\w-]*", snippet.body)
        if option and option[0] not in {*known, "--help"}:
            assert f'"{option[0]}"' in scripts, f"{snippet}: {option[0]}"


def leaves(command: Any) -> list[Any]:
    """Every command that is no group."""
    if not hasattr(command, "commands"):
        return [command]
    return [leaf for inner in command.commands.values() for leaf in leaves(inner)]


def test_paths_in_prose_exist() -> None:
    for snippet in inline():
        path = snippet.body.strip()
        if path.startswith(FOLDERS) and " " not in path:
            assert (ROOT / path).exists(), f"{snippet}: {path}"


def test_modules_in_the_architecture_exist() -> None:
    packages = [path.parent.name for path in (ROOT / "edgecompress").glob("*/__init__.py")]
    for snippet in inline():
        if snippet.page.name == "architecture.md" and snippet.body.split("/")[0] in packages:
            module = ROOT / "edgecompress" / snippet.body
            assert module.is_dir() or module.with_suffix(".py").exists(), str(snippet)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: str(path.name)
)
def test_recipe_of_the_repository_is_valid(path: Path) -> None:
    read(path)
    for variant in yaml.safe_load(path.read_text("utf-8")).get("variants") or {}:
        read(path, variant=variant)


def test_the_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    errors = ast.parse((ROOT / "edgecompress" / "errors.py").read_text("utf-8"))
    codes = {
        node.value.value
        for node in ast.walk(errors)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Constant)
        if "exit_code" in ast.unparse(node)
    }
    section = (ROOT / "README.md").read_text("utf-8").split("## Exit codes")[1].split("\n## ")[0]
    assert {int(row) for row in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == {0, *codes}
