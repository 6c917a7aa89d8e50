"""Write down the schemas of vLLM's XPU ops, as the text of the vllm-xpu-kernels wheel has them.

    python tools/extract_schemas.py vllm_xpu_kernels-*.whl > tests/data/vllm_xpu_schemas.json

Schemas are registered as text, so that they stand in the compiled library as they are; nothing is
loaded or executed.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile

LIBRARY = "vllm_xpu_kernels/_xpu_C.abi3.so"
OPS = (
    "fp4_gemm",
    "fp8_gemm",
    "fp8_gemm_out",
    "fp8_gemm_w8a16",
    "int4_gemm_w4a16",
    "int4_gemm_w4a8",
)


def extract(wheel: str) -> dict[str, object]:
    """Distribution, version and the schema of each of `OPS`."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(LIBRARY)
        metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        fields = dict(
            line.split(": ", 1)
            for line in archive.read(metadata).decode().splitlines()
            if line.startswith(("Name: ", "Version: "))
        )
    schemas = {}
    for name in OPS:
        pattern = rb"\0(" + name.encode() + rb"\([ -~]*?\) -> [ -~]*?)\0"
        found = sorted({match.decode() for match in re.findall(pattern, text)})
        if len(found) != 1:
            raise SystemExit(f"{LIBRARY} has {len(found)} schemas of {name}: {found}")
        schemas[name] = found[0]
    return {"distribution": fields["Name"], "version": fields["Version"], "schemas": schemas}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    json.dump(extract(sys.argv[1]), sys.stdout, indent=2, sort_keys=True)
    print()
