"""Humming's functions with the signatures of a release, computing what they say in float64.

What is asserted is what release 0.1.19 checks: of tensors in
``HummingWeightSchema.get_tensors_attrs`` and ``csrc/launcher/tensor.h``, of shapes in
``kernel/humming.py`` (``check_shape``), of groups in ``tune/candidate.py``, of dtypes in
``config/mma.py``. Codes are taken out of their words bit by bit, not by the code that put them
there.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

KNOWN: dict[str, Any] = json.loads(
    Path(__file__).with_name("humming_signatures.json").read_text(encoding="utf-8")
)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def modules() -> dict[str, ModuleType]:
    """What to put into ``sys.modules``."""
    made = {name: ModuleType(name) for name in ("humming", *_MODULES)}
    for entry, body in _BODIES.items():
        module, _, name = entry.partition(":")
        setattr(made[module], name, _function(entry, body))
    return made


def _function(entry: str, body: Callable[..., Any]) -> Callable[..., Any]:
    parameters = KNOWN["parameters"][entry]
    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([inspect.Parameter(p, keyword) for p in parameters])

    def call(**given: Any) -> Any:
        signature.bind_partial(**given)  # fails if a keyword is not one of the release's
        return body(**given)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _schema(**given: Any) -> SimpleNamespace:
    assert given["b_dtype"] in (*(f"uint{bits}" for bits in range(2, 9)), "float8e4m3")
    assert given["bs_dtype"] in DTYPES
    group, kind = given["weight_scale_group_size"], given["weight_scale_type"]
    assert kind in ("group", "channel", "tensor")
    assert (kind == "group") == (group > 0)
    assert group == 0 or (group >= 16 and group & (group - 1) == 0)
    assert kind == "tensor" or given["bs_dtype"] != "float32"
    assert not given["has_zero_point"] or kind != "tensor"
    return SimpleNamespace(**given)


def _prepare_layer_config(
    shape_n: int,
    shape_k: int,
    weight_schema: SimpleNamespace,
    pad_n_to_multiple: int,
    pad_k_to_multiple: int,
    torch_dtype: torch.dtype,
    device: torch.device,
) -> SimpleNamespace:
    assert isinstance(device, torch.device)
    dtype = str(torch_dtype).removeprefix("torch.")
    assert dtype in ("float16", "bfloat16")
    assert weight_schema.bs_dtype in (dtype, "float32")
    pad_n, pad_k = -shape_n % pad_n_to_multiple, -shape_k % pad_k_to_multiple
    assert pad_n % 8 == pad_k % 8 == 0
    N, K = shape_n + pad_n, shape_k + pad_k
    assert N % 64 == K % 32 == 0
    facts = {"N": N, "K": K, "pad_n": pad_n, "pad_k": pad_k, "dtype": dtype, **vars(weight_schema)}
    return SimpleNamespace(facts=facts, to_str=lambda: json.dumps(facts))


def _transform(
    config: SimpleNamespace, tensors: dict[str, torch.Tensor], already_padded: bool
) -> dict[str, torch.Tensor]:
    assert already_padded
    f = config.facts
    names = {"weight", "weight_scale", *(["zero_point"] if f["has_zero_point"] else [])}
    assert set(tensors) == names
    bits = _bits(f)
    groups = f["K"] // (f["weight_scale_group_size"] or f["K"])
    _check(tensors["weight"], torch.int32, (f["N"], f["K"] * bits // 32))
    shape = (1,) if f["weight_scale_type"] == "tensor" else (f["N"], groups)
    _check(tensors["weight_scale"], DTYPES[f["bs_dtype"]], shape)
    if f["has_zero_point"]:
        _check(tensors["zero_point"], torch.int32, (f["N"] * bits // 32, groups))
    # Any layout: the real one is Humming's business.
    return {name: tensor.flip(0).contiguous() for name, tensor in tensors.items()}


def _humming_gemm(
    layer_config: str,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    locks: torch.Tensor,
) -> torch.Tensor:
    f = json.loads(layer_config)
    bits, dtype = _bits(f), DTYPES[f["dtype"]]
    M, N, K = inputs.shape[0], f["N"] - f["pad_n"], f["K"] - f["pad_k"]
    assert M > 0
    _check(inputs, dtype, (M, K))
    assert inputs.data_ptr() % 16 == 0
    _check(locks, torch.int32, (2048,))
    assert not locks.any()
    codes = _unpacked(weight.flip(0), bits)
    if f["b_dtype"] == "float8e4m3":
        values = codes.to(torch.uint8).view(torch.float8_e4m3fn).double()
    elif zero_point is None:
        values = codes.double() - 2 ** (bits - 1)
    else:
        zeros = _unpacked(zero_point.flip(0).t(), bits).t()
        values = codes.double() - _spread(zeros.double(), f["K"])
    assert (zero_point is not None) == f["has_zero_point"]
    scale = weight_scale.flip(0).double()
    values = values * (scale if scale.dim() == 1 else _spread(scale, f["K"]))
    return (inputs.double() @ values[:N, :K].t()).to(dtype)


def _bits(facts: dict[str, Any]) -> int:
    return 8 if facts["b_dtype"] == "float8e4m3" else int(facts["b_dtype"].removeprefix("uint"))


def _spread(matrix: torch.Tensor, K: int) -> torch.Tensor:
    return matrix.repeat_interleave(K // matrix.shape[1], 1)


def _unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of ``bits`` bits, one behind the other in a row's bits, lowest first."""
    every = (words.contiguous()[..., None] >> torch.arange(32)) & 1
    of_code = every.reshape(words.shape[0], -1, bits)
    return (of_code << torch.arange(bits)).sum(-1)


def _check(tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert tensor.dtype == dtype
    assert tuple(tensor.shape) == shape
    assert tensor.is_contiguous()


_BODIES: dict[str, Callable[..., Any]] = {
    "humming.schema:HummingWeightSchema": _schema,
    "humming.transform:prepare_layer_config": _prepare_layer_config,
    "humming.transform:transform_humming_tensors": _transform,
    "humming.ops:humming_gemm": _humming_gemm,
}
_MODULES = sorted({entry.partition(":")[0] for entry in _BODIES})
