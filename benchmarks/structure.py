"""The structure of the package: sizes of functions and files, types of signatures, import cycles,
modules with tests of their own.

    # a table, and results/structure.json; seconds
    python benchmarks/structure.py
    # exits 1 when a bar is missed
    python benchmarks/structure.py --check

Lines of a function: from its `def` to its end, with docstring, comments and blank lines, without
decorators; functions inside functions count by themselves, too. Percentiles are nearest ranks. A
signature is the annotations of all parameters and of the return value. An import cycle is a set of
modules that reach each other through imports at module level or in functions, without those under
TYPE_CHECKING. A module has a test of its own where tests/ holds test_NAME.py in the same place, or
where tests/test_mirror.py names it. `__init__.py` and `__main__.py` need none.
"""

from __future__ import annotations

import ast
import io
import math
import statistics
import tokenize
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, Row, bench_of, parser

PACKAGE = "edgecompress"
LONGEST = 10
"""So many of the longest functions and files are listed."""
Graph = Mapping[str, Collection[str]]
"""Modules, and those that each imports."""


@dataclass(frozen=True)
class Function:
    """A function: where it is, its lines, and what its signature contains."""

    name: str
    lines: int
    any: bool
    any_mapping: bool


@dataclass(frozen=True)
class Module:
    """A file of the package: its dotted name, its path below the package, and what it holds."""

    name: str
    path: str
    lines: int
    fmt_skips: int
    functions: tuple[Function, ...]
    imports: frozenset[str]


@dataclass(frozen=True)
class Bar:
    """A limit of the structure, and the value now."""

    name: str
    limit: float
    value: float

    @property
    def met(self) -> bool:
        """Is the value at most the limit?"""
        return self.value <= self.limit


def read_package(root: Path) -> list[Module]:
    """All modules of the package below `root`."""
    package = root / PACKAGE
    paths = {dotted(path.relative_to(root)): path for path in sorted(package.rglob("*.py"))}
    return [read_module(name, path, package, paths) for name, path in paths.items()]


def dotted(path: Path) -> str:
    """The module of a path: a/b.py is a.b, a/__init__.py is a."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_module(name: str, path: Path, package: Path, known: Collection[str]) -> Module:
    """One file; imports of modules that are not `known` are left out."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    relative = path.relative_to(package).as_posix()
    base = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports = frozenset(imported(running(tree), base, known)) - {name}
    functions = tuple(functions_of(tree, f"{relative}:"))
    return Module(name, relative, len(text.splitlines()), fmt_skips(text), functions, imports)


def functions_of(node: ast.AST, prefix: str) -> Iterator[Function]:
    """All functions below `node`, named by what they stand in."""
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield function_of(child, prefix)
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{prefix}{child.name}."
        yield from functions_of(child, inner)


def function_of(node: ast.FunctionDef | ast.AsyncFunctionDef, prefix: str) -> Function:
    """What is counted of one function."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    parts = [part for annotation in annotations_of(node) for part in ast.walk(annotation)]
    return Function(
        prefix + node.name,
        lines,
        any(is_any(part) for part in parts),
        any(is_any_mapping(part) for part in parts),
    )


def annotations_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    """The annotations of a signature; those that are written as strings, parsed."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    for annotation in [*(one.annotation for one in every), node.returns]:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            yield ast.parse(annotation.value, mode="eval").body
        elif annotation is not None:
            yield annotation


def last_name(node: ast.AST) -> str:
    """`x` of the expressions x and a.x; else nothing."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def is_any(node: ast.AST) -> bool:
    """Is it `Any`?"""
    return last_name(node) == "Any"


def is_any_mapping(node: ast.AST) -> bool:
    """Is it `dict[str, Any]` or `Mapping[str, Any]`?"""
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
        return False
    words = tuple(last_name(part) for part in node.slice.elts)
    return last_name(node.value) in ("dict", "Mapping") and words == ("str", "Any")


def fmt_skips(text: str) -> int:
    """Comments that exempt a statement from the formatter."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(t.type == tokenize.COMMENT and "fmt: skip" in t.string for t in tokens)


def running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node`, without what stands under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and last_name(child.test) == "TYPE_CHECKING":
            for statement in child.orelse:
                yield statement
                yield from running(statement)
            continue
        yield child
        yield from running(child)


def imported(nodes: Iterator[ast.AST], base: str, known: Collection[str]) -> Iterator[str]:
    """Modules among `known` that import statements name; `base` is the package of the file."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            module = source(node, base)
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield from [name for name in (inner, module) if name in known][:1]


def source(node: ast.ImportFrom, base: str) -> str:
    """The module of `from MODULE import ...`, where relative: seen from the package `base`."""
    if not node.level:
        return node.module or ""
    parts = base.split(".")
    above = parts[: len(parts) - node.level + 1]
    return ".".join([*above, *filter(None, [node.module])])


def cycles(graph: Graph) -> list[list[str]]:
    """Sets of modules that reach each other."""
    reached = {name: reachable(graph, name) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return sorted(list(group) for group in groups)


def reachable(graph: Graph, start: str) -> set[str]:
    """Modules that `start` imports, directly or through others."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def percentile(values: Sequence[int], share: float) -> int:
    """The nearest-rank percentile."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def sizes(lines: Sequence[tuple[str, int]]) -> Row:
    """Count, percentiles and the longest of named things."""
    values = [size for _, size in lines]
    longest = sorted(lines, key=lambda item: (-item[1], item[0]))[:LONGEST]
    return {
        "count": len(values),
        "median": statistics.median(values),
        "p95": percentile(values, 0.95),
        "max": max(values),
        "longest": [{"name": name, "lines": size} for name, size in longest],
    }


def mirrored(modules: Sequence[Module], tests: Path) -> Row:
    """Modules with a test of their own, and those without."""
    table = named_in(tests / "test_mirror.py")
    paths = [path for path in (Path(module.path) for module in modules) if path.stem[0] != "_"]
    without = [path.as_posix() for path in paths if not has_test(path, tests, table)]
    share = (len(paths) - len(without)) / len(paths) if paths else 1.0
    return {"modules": len(paths), "share": share, "without": without}


def has_test(path: Path, tests: Path, table: Collection[str]) -> bool:
    """Has the module at `path` below the package a test of its own, or a place in the table?"""
    own = tests / path.with_name(f"test_{path.name}")
    module = f"{PACKAGE}.{dotted(path)}"
    stem = path.with_suffix("").as_posix()
    return own.is_file() or not {path.as_posix(), stem, dotted(path), module}.isdisjoint(table)


def named_in(path: Path) -> frozenset[str]:
    """All strings of a Python file; none where there is no file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else ()
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return frozenset(value for value in constants if isinstance(value, str))


def structure(root: Path) -> Row:
    """Everything that is counted below `root`."""
    modules = read_package(root)
    functions = [function for module in modules for function in module.functions]
    return {
        "functions": sizes([(function.name, function.lines) for function in functions]),
        "files": sizes([(module.path, module.lines) for module in modules]),
        "signatures": {
            "any": sum(function.any for function in functions),
            "any_mapping": sum(function.any_mapping for function in functions),
        },
        "fmt_skips": sum(module.fmt_skips for module in modules),
        "tests": mirrored(modules, root / "tests"),
        "import_cycles": cycles({module.name: module.imports for module in modules}),
        "readme_words": len((root / "README.md").read_text(encoding="utf-8").split()),
    }


def bars(counted: Row) -> list[Bar]:
    """All limits, with the values of `counted`."""
    functions, signatures = counted["functions"], counted["signatures"]
    return [
        Bar("lines per function, median", 10, functions["median"]),
        Bar("lines per function, 95th percentile", 40, functions["p95"]),
        Bar("lines per function, maximum", 80, functions["max"]),
        Bar("lines per file, maximum", 400, counted["files"]["max"]),
        Bar("signatures with Any", 80, signatures["any"]),
        Bar("signatures with dict[str, Any] or Mapping[str, Any]", 30, signatures["any_mapping"]),
        Bar("fmt: skip", 10, counted["fmt_skips"]),
        Bar("import cycles", 0, len(counted["import_cycles"])),
        Bar("words of README.md", 1000, counted["readme_words"]),
    ]


def show(counted: Row, limits: Sequence[Bar]) -> None:
    """The table, then what is longest and what has no test."""
    for bar in limits:
        mark = "" if bar.met else "  missed"
        print(f"{bar.name:52} {bar.value:6g}  of {bar.limit:5g}{mark}")
    for kind in ("functions", "files"):
        part = counted[kind]
        numbers = f"median {part['median']:g}, 95th percentile {part['p95']}, maximum {part['max']}"
        print(f"\n{part['count']} {kind}: {numbers} lines; the longest:")
        for row in part["longest"]:
            print(f"{row['lines']:6}  {row['name']}")
    tests = counted["tests"]
    print(f"\n{tests['share']:.0%} of {tests['modules']} modules have a test of their own")
    for cycle in counted["import_cycles"]:
        print(f"import cycle: {', '.join(cycle)}")


def main() -> None:
    """Count, print, store; with --check judge."""
    options = parser(__doc__)
    options.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options.add_argument("--root", type=Path, default=ROOT, help="the repository; default: this")
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    counted = structure(arguments.root)
    limits = bars(counted)
    rows = [{"name": b.name, "limit": b.limit, "value": b.value, "met": b.met} for b in limits]
    bench.store(command=bench.command(), **counted, bars=rows)
    show(counted, limits)
    missed = [bar.name for bar in limits if not bar.met]
    if arguments.check and missed:
        raise SystemExit(f"{len(missed)} bars missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
