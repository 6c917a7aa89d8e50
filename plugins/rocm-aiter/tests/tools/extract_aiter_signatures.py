"""Write ``data/aiter_signatures.json`` from a wheel of ``amd-aiter``, without importing it.

``pip download --no-deps amd-aiter``, then ``python extract_aiter_signatures.py FILE.whl``.
Signatures are read from the syntax tree. ``shuffle_weight`` is a function of torch alone: its
definition is cut out and run, and a digest of what it makes of known bytes is kept. Of the tables
of tuned shapes the columns and the number of lines are kept.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

FUNCTIONS = ("gemm_a8w8_CK", "gemm_a8w8_bpreshuffle", "gemm_a8w8_blockscale", "shuffle_weight")
FILES = ("aiter/ops/gemm_op_a8w8.py", "aiter/ops/shuffle.py")
TABLES = (
    "a8w8_tuned_gemm.csv",
    "a8w8_bpreshuffle_tuned_gemm.csv",
    "a8w8_blockscale_tuned_gemm.csv",
)
DATA = Path(__file__).parents[1] / "data" / "aiter_signatures.json"


def parameters(function: ast.FunctionDef) -> list[dict[str, str | None]]:
    """Name, annotation and default of each."""
    args = function.args.args
    defaults = [None] * (len(args) - len(function.args.defaults)) + list(function.args.defaults)
    return [
        {
            "name": arg.arg,
            "annotation": ast.unparse(arg.annotation) if arg.annotation else None,
            "default": ast.unparse(default) if default else None,
        }
        for arg, default in zip(args, defaults, strict=True)
    ]


def shuffled_digest(function: ast.FunctionDef) -> str:
    """Of `known_bytes`, as the function orders them."""
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([function], []), "shuffle.py", "exec"), scope)
    made = scope["shuffle_weight"](known_bytes(), (16, 16))
    return hashlib.sha256(bytes(made.contiguous().flatten().tolist())).hexdigest()


def known_bytes() -> torch.Tensor:
    """uint8 [48, 96], as irregular as it takes to tell orders apart."""
    count = torch.arange(48 * 96, dtype=torch.int64)
    return (count * 97 // 13 % 251).to(torch.uint8).reshape(48, 96)


def main(wheel: str) -> None:
    found: dict[str, Any] = {"functions": {}, "tables": {}}
    with ZipFile(wheel) as files:
        names = files.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        lines = files.read(metadata).decode().splitlines()
        found["version"] = next(x.split(": ")[1] for x in lines if x.startswith("Version: "))
        for file in FILES:
            for node in ast.parse(files.read(file)).body:
                if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS:
                    found["functions"][node.name] = parameters(node)
                    if node.name == "shuffle_weight":
                        found["shuffled"] = shuffled_digest(node)
        for table in TABLES:
            text = io.StringIO(files.read(f"aiter/configs/{table}").decode())
            rows = list(csv.reader(text))
            found["tables"][table] = {"columns": rows[0], "lines": len(rows) - 1}
    DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
