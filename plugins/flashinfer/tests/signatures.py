"""Write down what this plugin calls, as the FlashInfer that is installed has it.

    python plugins/flashinfer/tests/signatures.py

Run it once in an environment of each release that is to be supported; it adds to
``signatures.json``: parameters with their defaults, and for each backend the compute capabilities
for which FlashInfer says that it is. The tests compare these with what is installed.
"""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("signatures.json")
FUNCTIONS = {
    "bmm_fp8": "flashinfer",
    "fp8_blockscale_gemm_sm90": "flashinfer.gemm",
    "mm_fp4": "flashinfer",
    "mm_fp8": "flashinfer",
    "mm_mxfp8": "flashinfer",
    "shuffle_matrix_a": "flashinfer",
}
BACKENDS = ("b12x", "cublas", "cudnn", "cute-dsl", "cutlass", "trtllm")
CAPABILITIES = (75, 80, 86, 89, 90, 100, 103, 110, 120, 121)


def described(function: Any) -> dict[str, Any]:
    """Parameters, and backends with their capabilities."""
    parameters = {
        name: [parameter.kind.name, _default(parameter.default)]
        for name, parameter in inspect.signature(function).parameters.items()
    }
    ask = getattr(function, "is_backend_supported", None)
    backends = None
    if ask is not None:
        backends = {b: [cc for cc in CAPABILITIES if ask(b, cc)] for b in BACKENDS if ask(b)}
    return {"parameters": parameters, "backends": backends}


def _default(value: Any) -> str | None:
    return None if value is inspect.Parameter.empty else repr(value)


def installed() -> dict[str, Any]:
    """Of every function, from the package that is installed."""
    return {
        name: described(getattr(import_module(module), name)) for name, module in FUNCTIONS.items()
    }


def main() -> None:
    """Add the installed release to the file."""
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    number = version("flashinfer-python")
    release = ".".join(number.split(".")[:2])
    known[release] = {"version": number, "functions": installed()}
    text = json.dumps(dict(sorted(known.items())), indent=1)
    FILE.write_text(text + "\n", encoding="utf-8")
    print(f"{release} ({number}) written to {FILE.name}")


if __name__ == "__main__":
    main()
