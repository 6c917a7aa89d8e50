"""Marlin's kernels, run on the processor as they are generated; see marlin_emulation.h."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from marlin_emulated import COMPILER, launch, run
from marlin_oracle import DTYPES, assert_marlin, bias_order, inputs, problem
from qcore.kernels.base import LinearKernel, tensor_of
from qcore.plugin import Platform
from qcore.testing import check_kernel, conformance_configs
from qcore.testing.configs import spread
from qcore_cuda.kernels import marlin, marlin_floats, marlin_support
from qcore_cuda.marlin.instances import (
    THREAD_CONFIGS,
    THREAD_M_BLOCKS,
    Instance,
    instances,
)
from qcore_cuda.plugin import qcore_kernels

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ for the emulation of kernels")

EVERYTHING = pytest.mark.skipif(
    "QCORE_EMULATE_ALL" not in os.environ, reason="minutes; set QCORE_EMULATE_ALL to run them"
)

Tensor = torch.Tensor


ALL = instances((75, 80, 89))
BY_SCHEME = {i.scheme: i for i in ALL if THREAD_CONFIGS[i.thread_config][2] == 128}
"""One kernel of each scheme, the tile with most rows."""


def _some() -> dict[tuple[str, str], Instance]:
    """Of each config, by its type of activations, the scheme with the largest groups."""
    return {(s.config, s.a_type): i for s, i in BY_SCHEME.items() if s.family != 75}


SOME = list(_some().values())
SOME += [i for s, i in BY_SCHEME.items() if s.family == 75 and s.group_blocks == 2]
SOME += [i for s, i in BY_SCHEME.items() if s.family == 80 and s.group_blocks == 0]
REST = [pytest.param(i, marks=EVERYTHING) for i in BY_SCHEME.values() if i not in SOME]


@pytest.mark.parametrize("instance", [*SOME, *REST], ids=lambda i: i.name)
def test_schemes(instance: Instance) -> None:
    K, N, M = 288, 128, 19  # K is not whole steps of a tile
    if instance.scheme.group_blocks in (4, 8):
        K = 16 * instance.scheme.group_blocks * 3
    p = problem(instance.scheme, K, N)
    x, value, scales = inputs(instance.scheme, M, K)
    bias = torch.randn(N, generator=torch.Generator().manual_seed(5))
    bias = bias.to(DTYPES[instance.scheme.c_type])
    out = run(instance, x, p, a_scales=scales, bias=bias_order(bias))
    assert_marlin(out, value, p, instance.scheme, bias)


TILES = [i for i in ALL if i.scheme.config in ("gptq-int4", "int8-gptq-int4")]
TILES = [i for i in TILES if i.scheme.family == 80 and i.scheme.group_blocks == 8]
TILES = [i for i in TILES if i.scheme.c_type == "bfloat16"]


@pytest.mark.parametrize("instance", TILES, ids=lambda i: i.name)
def test_tiles(instance: Instance) -> None:
    """Edges of every tile; any number of blocks, in any order, gives the same."""
    K, N = 384, 320
    rows = int(16 * THREAD_M_BLOCKS[instance.m_block])
    p = problem(instance.scheme, K, N)
    x, value, scales = inputs(instance.scheme, rows + 1, K)
    first = None
    for blocks, order in ((1, 0), (4, 0), (4, 1), (13, 0)):
        out = run(instance, x, p, a_scales=scales, blocks=blocks, order=order)
        assert_marlin(out, value, p, instance.scheme)
        if blocks == 4:
            first = out if first is None else first
            assert torch.equal(out, first)


@pytest.mark.parametrize("M", [1, 7, 8])
@pytest.mark.parametrize("n_out", [65, 127, 128])
def test_padding(M: int, n_out: int) -> None:
    """Fewer inputs and outputs than the padded weight has."""
    instance = next(i for i in TILES if i.scheme.config == "gptq-int4")
    p = problem(instance.scheme, 256, 128)
    x, value, _ = inputs(instance.scheme, M, 250)
    out = run(instance, x, p, n_out=n_out)
    p.weight = p.weight[:, :n_out]
    assert_marlin(out, value, p, instance.scheme)


CLASSES = [
    marlin.MarlinLinearKernel,
    marlin_floats.MarlinFP8ScaledMMLinearKernel,
    marlin_floats.MarlinNvFp4LinearKernel,
    marlin_floats.MarlinMxFp4LinearKernel,
    marlin_floats.MarlinMxfp8LinearKernel,
]


@pytest.fixture
def on_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel classes multiply by emulated kernels; the rest of the op is done here."""
    support = marlin_support.MarlinSupport

    def prepare(self: Any, config: Any, **facts: bool) -> Any:
        scheme = marlin_support.scheme_of(config, 90, **facts)
        self.instance = BY_SCHEME[scheme]
        return scheme

    def multiply(
        self: Any,
        layer: torch.nn.Module,
        x: Tensor,
        bias: Tensor | None,
        names: dict[str, str],
        a_scales: Tensor | None = None,
    ) -> Tensor:
        given = {name: tensor_of(layer, at) for name, at in names.items()}
        given = {name: t for name, t in given.items() if t.numel()}
        rows = x.reshape(-1, x.shape[-1])
        perm = given.pop("perm", None)
        if perm is not None:
            rows = torch.cat([rows, rows.new_zeros(len(rows), 1)], 1)[:, perm.long()]
        if not len(rows):
            return x.new_empty((*x.shape[:-1], self.out_features), dtype=self.out_dtype)
        words, scales = given.pop("weight"), given.pop("weight_scale")
        out = launch(
            self.instance, rows, words, scales, n_out=self.out_features, a_scales=a_scales,
            bias=None if bias is None else bias.to(self.out_dtype), plain_bias=True, **given,
        )  # fmt: skip
        return out.reshape(*x.shape[:-1], self.out_features)

    def quantize(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        whole = self.config.act_type == torch.int8
        scale = x.float().abs().amax(-1, keepdim=True) / (127 if whole else 448)
        scale = scale.clamp_min(1e-10)
        codes = x.float() / scale
        return (codes.round() if whole else codes).to(self.config.act_type), scale

    monkeypatch.setattr(marlin.MarlinLinearKernel, "quantize", quantize)
    monkeypatch.setattr(support, "prepare", prepare)
    monkeypatch.setattr(support, "multiply", multiply)
    monkeypatch.setattr(
        support, "is_supported", classmethod(lambda cls, capability=None: (True, None))
    )
    monkeypatch.setattr(support, "get_min_capability", classmethod(lambda cls: -1))
    monkeypatch.setattr(marlin_support, "capability_of_target", lambda: 90)


@pytest.mark.parametrize("kernel_class", CLASSES, ids=lambda c: c.__name__)
def test_layers(kernel_class: type[LinearKernel[Any]], on_processor: None) -> None:
    """The conformance kit, on packed layers."""
    spec = next(spec for spec in qcore_kernels() if spec.name == kernel_class.__name__)
    spec = replace(spec, platforms=(Platform.CPU,), min_capability=None)
    fitting = [c for c in conformance_configs(spec.kernel_type) if kernel_class.can_implement(c)[0]]
    parts = [c for c in fitting if getattr(c, "has_g_idx", False) and c.in_features in (77, 128)]
    configs = spread(fitting, 3 if parts else 1) + spread(parts, 3)
    check_kernel(
        kernel_class,
        device="cpu",
        spec=spec,
        configs=configs,
        checks=("check_numerics", "check_packing"),
    )
