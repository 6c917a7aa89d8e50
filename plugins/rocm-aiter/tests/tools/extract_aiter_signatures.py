"""Write ``data/aiter_signatures.json`` from a wheel of ``amd-aiter``, without importing it.

``pip download --no-deps amd-aiter``, then ``python extract_aiter_signatures.py FILE.whl``. With a
checkout of AITER as a second argument, signatures that are newer there are kept as well, with the
commit. Signatures are read from the syntax tree. ``shuffle_weight`` and ``e8m0_shuffle`` are
functions of torch alone: their definitions are cut out and run, and a digest of what they make of
known bytes is kept. Of the tables of tuned shapes the columns and the number of lines are kept.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

FUNCTIONS = (
    *("gemm_a8w8_CK", "gemm_a8w8_bpreshuffle", "gemm_a8w8_blockscale"),
    *("gemm_a4w4", "hipb_create_extension", "hipb_mm"),
    *("shuffle_weight", "e8m0_shuffle"),
)
FILES = (
    "aiter/ops/gemm_op_a8w8.py",
    "aiter/ops/gemm_op_a4w4.py",
    "aiter/ops/gradlib.py",
    "aiter/ops/shuffle.py",
    "aiter/utility/fp4_utils.py",
)
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


def digest_of(function: ast.FunctionDef, *arguments: Any) -> str:
    """Of what the function makes of ``arguments``."""
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([function], []), "shuffle.py", "exec"), scope)
    return digest(scope[function.name](*arguments))


def digest(made: torch.Tensor) -> str:
    """Of bytes in their order."""
    return hashlib.sha256(bytes(made.contiguous().flatten().tolist())).hexdigest()


def known_bytes() -> torch.Tensor:
    """uint8 [48, 96], as irregular as it takes to tell orders apart."""
    count = torch.arange(48 * 96, dtype=torch.int64)
    return (count * 97 // 13 % 251).to(torch.uint8).reshape(48, 96)


def known_scales() -> torch.Tensor:
    """uint8 [256, 16], whole tiles: what stands behind those is not initialized."""
    count = torch.arange(256 * 16, dtype=torch.int64)
    return (count * 89 // 11 % 241).to(torch.uint8).reshape(256, 16)


def definitions(sources: Mapping[str, bytes | str]) -> dict[str, ast.FunctionDef]:
    """The functions among `FUNCTIONS`, by name."""
    return {
        node.name: node
        for source in sources.values()
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS
    }


def newer(checkout: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkout has in another form than ``known``."""
    run = subprocess.run(
        ("git", "-C", str(checkout), "rev-parse", "HEAD"),
        check=True,
        capture_output=True,
        text=True,
    )
    found = definitions({file: (checkout / file).read_bytes() for file in FILES})
    names = {name: [p["name"] for p in described] for name, described in known.items()}
    return {
        "commit": run.stdout.strip(),
        "functions": {
            name: parameters(node)
            for name, node in found.items()
            if [p["name"] for p in parameters(node)] != names.get(name)
        },
    }


def main(wheel: str, checkout: str | None = None) -> None:
    found: dict[str, Any] = {"functions": {}, "tables": {}}
    with ZipFile(wheel) as files:
        names = files.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        lines = files.read(metadata).decode().splitlines()
        found["version"] = next(x.split(": ")[1] for x in lines if x.startswith("Version: "))
        functions = definitions({file: files.read(file) for file in FILES})
        found["functions"] = {name: parameters(node) for name, node in functions.items()}
        found["shuffled"] = digest_of(functions["shuffle_weight"], known_bytes(), (16, 16))
        found["shuffled_scales"] = digest_of(functions["e8m0_shuffle"], known_scales())
        for table in TABLES:
            text = io.StringIO(files.read(f"aiter/configs/{table}").decode())
            rows = list(csv.reader(text))
            found["tables"][table] = {"columns": rows[0], "lines": len(rows) - 1}
    if checkout is not None:
        found["newer"] = newer(Path(checkout), found["functions"])
    DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
