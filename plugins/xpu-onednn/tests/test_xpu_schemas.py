"""The ops have the schemas of vLLM's, as they stand in its wheel."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from qcore_xpu import ops

HERE = Path(__file__).parent
FIXTURE = json.loads((HERE / "data" / "vllm_xpu_schemas.json").read_text(encoding="utf-8"))
OURS_ALONE = {"int8_gemm", "int8_gemm_w8a16", "fp4_gemm_w4a8", "fp4_gemm_w4a16"}


@pytest.mark.parametrize("name", sorted(FIXTURE["schemas"]))
def test_schema(name: str) -> None:
    assert ops.SCHEMAS[name] == FIXTURE["schemas"][name]
    registered = str(getattr(torch.ops.qcore_xpu, name).default._schema)
    assert registered == f"qcore_xpu::{FIXTURE['schemas'][name]}"


def test_others_are_said_to_be_ours() -> None:
    names = {name.partition(".")[0] for name in ops.SCHEMAS}
    assert names == OURS_ALONE | set(FIXTURE["schemas"])
    assert FIXTURE["distribution"] == "vllm-xpu-kernels"


def _extractor() -> ModuleType:
    path = HERE.parent / "tools" / "extract_schemas.py"
    spec = importlib.util.spec_from_file_location("extract_schemas", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_extractor_reads_a_wheel(tmp_path: Path) -> None:
    tool = _extractor()
    wheel = tmp_path / "x.whl"
    text = b"\0".join(schema.encode() for schema in FIXTURE["schemas"].values())
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(tool.LIBRARY, b"\x7fELF\0" + text + b"\0fp8_gemm(junk\0")
        archive.writestr("x.dist-info/METADATA", "Name: vllm-xpu-kernels\nVersion: 0.1.16.2\n")
    assert tool.extract(str(wheel)) == FIXTURE
