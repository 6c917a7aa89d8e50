"""What the sources of this repository say of ops: who registers them, and who calls what."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bilingual import ROOT

_COMPILED = (".cpp", ".cu", ".hip", ".h", ".cuh", ".hpp")
_LIBRARY = re.compile(r"TORCH_LIBRARY(?:_FRAGMENT)?\(\s*(\w+)\s*,")
_DEFINED = re.compile(r'\.def\(\s*((?:R?"(?:[^"\\]|\\.)*"\s*)+)')
_DECORATED = re.compile(r'(?:custom_op|triton_op)\(\s*"(\w+)::(\w+)"')


@dataclass(frozen=True)
class CompiledOp:
    """An op that a plugin registers.

    Attributes:
        namespace: in ``torch.ops``.
        name: in it.
        schema: its arguments and results; "" where a Python function's annotations say them.
        path: the file.
    """

    namespace: str
    name: str
    schema: str
    path: Path


@lru_cache(maxsize=1)
def compiled_ops() -> tuple[CompiledOp, ...]:
    """Every op that the plugins register, by namespace and name."""
    found: list[CompiledOp] = []
    for path in sorted(ROOT.glob("plugins/*/*/**/*")):
        if path.suffix in _COMPILED and "tests" not in path.parts and "build" not in path.parts:
            found += _from_cpp(path)
        elif path.suffix == ".py" and "src" in path.parts:
            text = path.read_text(encoding="utf-8")
            found += [CompiledOp(m[1], m[2], "", path) for m in _DECORATED.finditer(text)]
    return tuple(sorted(found, key=lambda op: (op.namespace, op.name)))


def _from_cpp(path: Path) -> Iterator[CompiledOp]:
    text = path.read_text(encoding="utf-8", errors="replace")
    libraries = [(m.start(), m[1]) for m in _LIBRARY.finditer(text)]
    for match in _DEFINED.finditer(text):
        before = [name for at, name in libraries if at < match.start()]
        schema = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', match[1]))
        if before and "(" in schema:
            yield CompiledOp(before[-1], schema.partition("(")[0].strip(), schema, path)


def wrappers(name: str) -> list[Path]:
    """The files of the plugins' ``ops`` packages that have a function of this name."""
    return [
        path
        for path, tree in _trees(None)
        if "ops" in (*path.parts, path.stem)
        and any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)
    ]


@dataclass(frozen=True)
class CallSite:
    """A function or method that calls something."""

    caller: str
    path: Path


def call_sites(name: str, sources: Iterable[Path] | None = None) -> list[CallSite]:
    """Where a function, method or class is called by this name, in the order of the files.

    Args:
        name: the last part of what is called.
        sources: folders; by default those of all distributions.
    """
    found: list[CallSite] = []
    for path, tree in _trees(tuple(sources) if sources else None):
        visitor = _Calls(name)
        visitor.visit(tree)
        found += [CallSite(caller, path) for caller in dict.fromkeys(visitor.callers)]
    return found


def users(op: CompiledOp) -> list[CallSite]:
    """Where its plugin uses an op: calls its function, or names it in ``torch.ops``."""
    plugin = ROOT.joinpath(*op.path.relative_to(ROOT).parts[:2])
    found: list[CallSite] = []
    for path, tree in _trees((plugin / "src",)):
        visitor = _Calls(op.name, op.namespace)
        visitor.visit(tree)
        found += [CallSite(caller, path) for caller in dict.fromkeys(visitor.callers)]
    return found


@lru_cache(maxsize=16)
def _trees(sources: tuple[Path, ...] | None) -> tuple[tuple[Path, ast.Module], ...]:
    folders = sources or (ROOT / "core" / "src", *sorted(ROOT.glob("plugins/*/src")))
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    # Neither the conformance kit nor the command line is part of running a model.
    kept = [path for path in paths if not {"testing", "cli"} & set(path.parts)]
    return tuple((path, ast.parse(path.read_text(encoding="utf-8"))) for path in kept)


def _of_torch(node: ast.expr) -> str | None:
    """The namespace, if this is one of ``torch.ops``."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
        library = node.value
        if library.attr == "ops" and getattr(library.value, "id", None) == "torch":
            return node.attr
    return None


class _Calls(ast.NodeVisitor):
    """Who calls something of this name; of ops in ``torch.ops``, who names that of a namespace."""

    def __init__(self, name: str, namespace: str | None = None) -> None:
        self.name = name
        self.namespace = namespace
        self.within: list[str] = []
        self.callers: list[str] = []

    def _enter(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        self.within.append(node.name)
        self.generic_visit(node)
        self.within.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._enter(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._enter(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        named = self.name in (getattr(called, "attr", None), getattr(called, "id", None))
        library = _of_torch(called.value) if isinstance(called, ast.Attribute) else None
        if named and (self.namespace is None or library is None):
            self.callers.append(".".join(self.within) or "module")
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        named = node.attr == self.name and self.namespace is not None
        if named and _of_torch(node.value) == self.namespace:
            self.callers.append(".".join(self.within) or "module")
        self.generic_visit(node)
