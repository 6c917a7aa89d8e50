"""The generator of Marlin's kernels, its plan and table, the cache; without a GPU."""

from __future__ import annotations

import json
import logging
import re
import runpy
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from marlin_oracle import marlin, marlin_zeros
from qcore.errors import MissingDependencyError
from qcore.facts.scalar_type import ScalarType
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore_cuda.marlin import cache, compilers
from qcore_cuda.marlin.checkpoint import schemes_of_checkpoint
from qcore_cuda.marlin.generate import generate_new_kernels, plan_of, remove_old_kernels, sources
from qcore_cuda.marlin.instances import (
    QUANT_CONFIGS,
    THREAD_CONFIGS,
    THREAD_M_BLOCKS,
    instances,
    parse_archs,
    schemes,
)
from qcore_cuda.marlin.layout import pack_codes, pack_zeros
from qcore_cuda.marlin.schemes import scheme_of

PLUGIN = Path(__file__).parents[1]
SCRIPT = PLUGIN / "generate_kernels.py"
ARCHS = "7.5,8.0,8.6,8.9,9.0"
EVERYTHING = instances(parse_archs(ARCHS))

needs_script = pytest.mark.skipif(not SCRIPT.is_file(), reason="the source tree is not here")


def test_every_scheme_of_the_table() -> None:
    """Weights, activations and blocks of a group that the generator promises."""
    found = {
        (c["b_type"], c["s_type"], a, c["is_zp_float"]): c["group_blocks"]
        for c in QUANT_CONFIGS
        for a in c["a_types"]
    }
    for a in ("float16", "bfloat16"):
        assert found["u4", None, a, False] == (-1, 2, 4, 8)
        assert found["u4b8", None, a, False] == (-1, 0, 2, 4, 8)
        assert found["u8b128", None, a, False] == (-1, 0, 2, 4, 8)
        assert found["fe4m3fn", None, a, False] == (-1, 8)
        assert found["fe2m1f", "fe4m3fn", a, False] == (1,)
    assert found["u4", None, "float16", True] == (4,)
    for a in ("bfloat16", "fe4m3fn"):
        assert found["fe2m1f", "fe8m0fnu", a, False] == (2,)
    assert found["fe4m3fn", "fe8m0fnu", "bfloat16", False] == (2,)
    for a in ("s8", "fe4m3fn"):
        assert found["u4", None, a, False] == found["u4b8", None, a, False] == (-1, 2, 4, 8)


def test_names_and_keys_differ() -> None:
    assert len({i.name for i in EVERYTHING}) == len(EVERYTHING)
    assert len({i.line for i in EVERYTHING}) == len(EVERYTHING)
    named = {i.scheme for i in EVERYTHING}
    assert len({s.key for s in named}) == len(named)
    assert len({(i.scheme, i.slot) for i in EVERYTHING}) == len(EVERYTHING)


def test_turing_has_neither_bfloat16_nor_fp8() -> None:
    for instance in instances((75,)):
        assert instance.scheme.a_type in ("float16", "s8")
        assert instance.scheme.c_type == "float16"
    assert not any(i.scheme.a_type == "fe4m3fn" for i in instances((80, 86)))


def test_deterministic(tmp_path: Path) -> None:
    """The same bytes from another process; a right file is not touched, a stale one goes."""
    first = {p.name: p.read_bytes() for p in generate_new_kernels(tmp_path, EVERYTHING)}
    assert {name[:4] for name in first if name.endswith(".cu")} == {"sm75", "sm80", "sm89"}
    for name in ("sm80_kernel_float16_u4_float16.cu", "sm80_kernel_bfloat16_u4b8_bfloat16.cu"):
        assert name in first
    assert "sm80_kernel_s8_u4_float16.cu" in first
    assert "sm89_kernel_fe4m3fn_u4b8_bfloat16.cu" in first
    stamps = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    generate_new_kernels(tmp_path, EVERYTHING)
    assert stamps == {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    other = tmp_path / "sm80_kernel_of_mine.cu"
    other.write_text("// mine\n")
    generate_new_kernels(tmp_path, instances((80,), ["nvfp4"]))
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {
        "kernel_selector.h",
        "sm80_kernel_bfloat16_fe2m1f_bfloat16.cu",
        "sm80_kernel_float16_fe2m1f_float16.cu",
        other.name,
    }
    remove_old_kernels(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [other.name]


@needs_script
def test_script(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), ARCHS, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == sources(EVERYTHING)
    plan = plan_of(EVERYTHING, parse_archs(ARCHS))
    assert done.stdout.strip() == str(plan)
    assert plan.kernels == len(EVERYTHING)
    assert plan.seconds > 0
    assert plan.megabytes > 0
    script = runpy.run_path(str(SCRIPT))
    assert script["QUANT_CONFIGS"] is not None
    for arguments in (["9"], ["5.0"], ["9.0", "--schemes", "nope"], ["9.0", "--set", "few"]):
        done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True)
        assert done.returncode == 2, arguments
        assert b"error:" in done.stderr


def test_table_is_sorted_and_whole() -> None:
    text = sources(EVERYTHING)["kernel_selector.h"]
    rows = re.findall(r"^    \{(\d+)u, \{(.*)\}\},$", text, re.M)
    keys = [int(key) for key, _ in rows]
    assert keys == sorted(set(keys))
    by_place = {(i.scheme.key, i.slot): i.name for i in EVERYTHING}
    for key, kernels in rows:
        cells = kernels.split(", ")
        assert len(cells) == len(THREAD_CONFIGS) * len(THREAD_M_BLOCKS)
        for slot, cell in enumerate(cells):
            name = by_place.pop((int(key), slot), None)
            assert cell == ("nullptr" if name is None else f"reinterpret_cast<const void*>({name})")
    assert not by_place


class Counting:
    """A compiler that counts."""

    version = "counting 1"

    def __init__(self) -> None:
        self.calls = 0

    def compile(self, source: str, headers: Mapping[str, str], arch: int) -> bytes:
        self.calls += 1
        assert '#include "marlin/kernel.cuh"' in source
        assert "marlin/kernel.cuh" in headers
        return f"{arch} {len(source)}".encode()


def test_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Compiled once, by whatever asks; another architecture, compiler or source is another file."""
    monkeypatch.setenv("QCORE_CUDA_CACHE", str(tmp_path / "cache"))
    compiler = Counting()
    wanted = EVERYTHING[:3]
    with caplog.at_level(logging.WARNING, "qcore.cuda"), ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: cache.compiled(wanted, 90, compiler), range(16)))
    assert len(set(paths)) == 1
    assert compiler.calls == 1
    assert "compiling 3 kernels" in caplog.text
    assert cache.compiled(wanted, 80, compiler) != paths[0]
    assert cache.compiled(wanted[:2], 90, compiler) != paths[0]
    newer = Counting()
    newer.version = "counting 2"
    assert cache.compiled(wanted, 90, newer) != paths[0]
    assert not list((tmp_path / "cache").glob("*.part"))


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCORE_CUDA_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "find_compiler", lambda: None)
    with pytest.raises(MissingDependencyError, match=r"no compiler.*nvidia-cuda-nvrtc"):
        cache.compiled(EVERYTHING[:1], 90)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QCORE_CUDA_CACHE", str(tmp_path / "file"))
    with pytest.raises(compilers.CompileError, match="QCORE_CUDA_CACHE"):
        cache.compiled(EVERYTHING[:1], 90, Counting())


@pytest.mark.parametrize("arch", [75, 80, 89, 90])
def test_compiles(arch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel of each scheme's kind, with no spills; a wrong source is an error in words."""
    compiler = compilers.find_compiler()
    if compiler is None:
        pytest.skip("neither NVRTC nor nvcc is here")
    monkeypatch.setenv("QCORE_CUDA_CACHE", str(tmp_path))
    wanted = {i.scheme.config: i for i in instances((arch,)) if i.m_block == 1}
    path = cache.compiled(list(wanted.values())[:4], arch, compiler)
    assert path.read_bytes()[:4] == b"\x7fELF"
    with pytest.raises(compilers.CompileError):
        compiler.compile("nonsense", cache.headers(), arch)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("a_8bit", [False, True])
def test_packing(bits: int, a_8bit: bool) -> None:
    codes = torch.randint(0, 1 << bits, (96, 192), dtype=torch.uint8)
    assert torch.equal(pack_codes(codes, bits, a_8bit), marlin(codes.numpy(), bits, a_8bit))
    zeros = codes[:5]
    assert torch.equal(pack_zeros(zeros, bits, a_8bit), marlin_zeros(zeros.numpy(), bits, a_8bit))


@needs_script
def test_for_checkpoint(tmp_path: Path) -> None:
    """The schemes of a checkpoint's layers; one without such layers is an error in words."""
    transformers = pytest.importorskip("transformers")
    from qcore.quantize import quantize_checkpoint

    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    model.bfloat16().save_pretrained(tmp_path / "dense")
    for scheme, config in (("int4-asym-g128", "awq-int4"), ("nvfp4-weight-only", "nvfp4")):
        quantize_checkpoint(tmp_path / "dense", tmp_path / scheme, scheme=scheme)
        found = schemes_of_checkpoint(tmp_path / scheme, (80, 90))
        assert {s.config for s in found} == {config}
        assert {s.a_type for s in found} == {"float16", "bfloat16"}
    quantize_checkpoint(tmp_path / "dense", tmp_path / "blocks", scheme="fp8-block-weight-only")
    for folder in ("dense", "blocks", "none"):
        with pytest.raises(ValueError, match=r"none|no layer"):
            schemes_of_checkpoint(tmp_path / folder, (90,))


def _mp(group_size: int, **others: object) -> MPLinearLayerConfig:
    facts = {"weight_type": ScalarType.uint(4, 8), "act_type": torch.bfloat16, "zero_points": False}
    facts |= others
    shape = (256, 128)
    return MPLinearLayerConfig(shape, shape, group_size=group_size, **facts)  # type: ignore[arg-type]


def test_schemes_of_layers() -> None:
    """Schemes for what there is, reasons for what there is not."""
    known = set(schemes((75, 80, 89)))
    assert scheme_of(_mp(128), 90) in known
    assert scheme_of(_mp(128, has_g_idx=True), 80, sorted_groups=False) in known
    narrow = _mp(64, act_type=torch.int8, out_type=torch.float16)
    assert scheme_of(narrow, 75) in known
    for config, capability, words in (
        (_mp(16), 90, "groups of 16"),
        (_mp(128), 75, "bfloat16 needs sm_80"),
        (_mp(7), 90, "groups of 7"),
        (_mp(128, weight_type=ScalarType.uint(3, 4)), 90, "uint3b4"),
        (_mp(128, act_type=torch.float8_e4m3fn, out_type=torch.bfloat16), 80, "sm_89"),
    ):
        reason = scheme_of(config, capability)
        assert isinstance(reason, str)
        assert words in reason


def test_plan_is_measured() -> None:
    costs = json.loads((Path(cache.__file__).parent / "build_costs.json").read_text())
    assert costs["measured"]
