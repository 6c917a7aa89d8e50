"""The parameters of an installed package's functions, read from its source without importing it.

    python plugins/cuda-cutlass/tests/installed_signatures.py RELEASE FILE.json MODULE:NAME ...

writes FILE.json. A package for GPUs seldom imports where there is none.
"""

from __future__ import annotations

import ast
import json
import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["parameters_in_source"]


def parameters_in_source(entry: str) -> list[str]:
    """The parameters of ``module:name``: of a function, or the annotated fields of a class.

    A name that the module takes from another one is looked for there.
    """
    module, _, name = entry.partition(":")
    tree = ast.parse(_source_of(module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            arguments = node.args
            return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            return [
                n.target.id
                for n in fields
                if isinstance(n.target, ast.Name) and "ClassVar" not in ast.unparse(n.annotation)
            ]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and name in [a.name for a in node.names]:
            assert node.module is not None
            return parameters_in_source(f"{node.module}:{name}")
    raise LookupError(f"{module} has no {name}")


def _source_of(module: str) -> Path:
    """Where a module lies; of its parents only the first is looked for, none is imported."""
    first, *rest = module.split(".")
    spec = find_spec(first)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    base = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    file = base.with_suffix(".py")
    return file if file.is_file() else base / "__init__.py"


def main() -> None:
    """Write the file."""
    release, file, *entries = sys.argv[1:]
    known = {"release": release, "parameters": {e: parameters_in_source(e) for e in entries}}
    Path(file).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
