"""What does not fit is refused before any work, by the argument's name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from qcore.errors import ConfigError
from qcore_xpu import library, ops
from qcore_xpu.ops.matmul import matmul

A16 = torch.zeros(2, 64, dtype=torch.float16)
A8 = torch.zeros(2, 64, dtype=torch.int8)
B4 = torch.zeros(16, 8, dtype=torch.int32).t()
S4 = torch.ones(2, 16)
Z4 = torch.tensor([8], dtype=torch.int8)
F8 = torch.zeros(2, 64).to(torch.float8_e4m3fn)
W8 = torch.zeros(16, 64).to(torch.float8_e4m3fn).t()
A4 = torch.zeros(2, 32, dtype=torch.uint8)
W4 = torch.zeros(16, 32, dtype=torch.uint8).t()
E4 = torch.zeros(2, 2, dtype=torch.uint8)
E16 = torch.zeros(2, 16, dtype=torch.uint8)
ONE = torch.ones(1)
I8 = torch.zeros(64, 16, dtype=torch.int8)


def w4a16(**given: object) -> torch.Tensor:
    arguments = {
        "A": A16, "B": B4, "bias": None, "B_scale": S4, "B_zp": Z4, "group_size": 32, "g_idx": None,
    }  # fmt: skip
    return ops.int4_gemm_w4a16(**{**arguments, **given})  # type: ignore[arg-type]


def w4a8(**given: object) -> torch.Tensor:
    arguments = {
        "A_": A8, "A_scale": ONE, "A_zp": None, "B": B4, "B_scale": S4, "B_zp": Z4,
        "group_size": 32, "g_idx": None, "bias": None,
    }  # fmt: skip
    return ops.int4_gemm_w4a8(**{**arguments, **given})  # type: ignore[arg-type]


def fp8(**given: object) -> torch.Tensor:
    arguments = {
        "A": F8, "B": W8, "out_dtype": None, "A_scale_": ONE, "B_scale_": ONE, "bias_": None,
    }  # fmt: skip
    return ops.fp8_gemm(**{**arguments, **given})  # type: ignore[arg-type]


def fp8_out(**given: object) -> torch.Tensor:
    arguments = {
        "out": torch.zeros(2, 16), "A": F8, "B": W8, "out_dtype": None, "A_scale_": ONE,
        "B_scale_": ONE, "bias_": None,
    }  # fmt: skip
    return ops.fp8_gemm_out(**{**arguments, **given})  # type: ignore[arg-type]


def w8a16(**given: object) -> torch.Tensor:
    arguments = {"A": A16, "B": W8, "B_scale_": ONE, "bias_": None}
    return ops.fp8_gemm_w8a16(**{**arguments, **given})  # type: ignore[arg-type]


def fp4(**given: object) -> torch.Tensor:
    arguments = {
        "A": A4, "B": W4, "A_scale": E4, "B_scale": E16, "out_dtype": None, "bias_": None,
    }  # fmt: skip
    return ops.fp4_gemm(**{**arguments, **given})  # type: ignore[arg-type]


def fp4_w4a8(**given: object) -> torch.Tensor:
    arguments = {
        "A": F8, "B": W4, "A_scale": ONE, "B_scale": E16, "out_dtype": None, "bias_": None,
    }  # fmt: skip
    return ops.fp4_gemm_w4a8(**{**arguments, **given})  # type: ignore[arg-type]


def int8(**given: object) -> torch.Tensor:
    arguments = {
        "A": A8, "B": I8, "A_scale": ONE, "A_zp": None, "B_scale": ONE,
        "out_dtype": torch.float32, "bias": None,
    }  # fmt: skip
    return ops.int8_gemm(**{**arguments, **given})  # type: ignore[arg-type]


def int8_w8a16(**given: object) -> torch.Tensor:
    arguments = {
        "A": A16, "B": I8, "bias": None, "B_scale": S4, "group_size": 32, "g_idx": None,
        "out_dtype": None,
    }  # fmt: skip
    return ops.int8_gemm_w8a16(**{**arguments, **given})  # type: ignore[arg-type]


WRONG: list[tuple[Callable[..., torch.Tensor], str, object]] = [
    (w4a16, "A", A8),
    (w4a16, "A", torch.zeros(2, 60, dtype=torch.float16)),
    (w4a16, "B", B4.float()),
    (w4a16, "B", B4.contiguous()),
    (w4a16, "B", B4[:7]),
    (w4a16, "bias", torch.zeros(15)),
    (w4a16, "bias", torch.zeros(16, dtype=torch.int32)),
    (w4a16, "B_scale", torch.ones(1, 16)),
    (w4a16, "B_scale", torch.ones(16, 2)),
    (w4a16, "B_scale", S4.double()),
    (w4a16, "B_zp", torch.zeros(2, 16, dtype=torch.int32)),
    (w4a16, "B_zp", torch.zeros(2, 2)),
    (w4a16, "group_size", 0),
    (w4a16, "g_idx", torch.zeros(63, dtype=torch.int64)),
    (w4a16, "g_idx", torch.zeros(64)),
    (w4a8, "A_", A16),
    (w4a8, "A_scale", torch.ones(3, 1)),
    (w4a8, "A_scale", torch.ones(1, dtype=torch.int32)),
    (w4a8, "A_zp", torch.zeros(1)),
    (w4a8, "A_zp", torch.zeros(3, dtype=torch.int32)),
    (fp8, "A", A16),
    (fp8, "A", torch.zeros(2, 64).to(torch.float8_e5m2)),
    (fp8, "B", W8.t()),
    (fp8, "B", A16),
    (fp8, "out_dtype", torch.float64),
    (fp8, "A_scale_", torch.ones(3, 1)),
    (fp8, "A_scale_", torch.ones(2, 3)),
    (fp8, "A_scale_", torch.ones(1).double()),
    (fp8, "B_scale_", torch.ones(15)),
    (fp8, "B_scale_", torch.ones(3, 16)),
    (fp8, "B_scale_", torch.ones(2, 5)),
    (fp8, "bias_", torch.zeros(3)),
    (fp8_out, "out", torch.zeros(2, 17)),
    (fp8_out, "out", torch.zeros(16, 2).t()),
    (fp8_out, "out", torch.zeros(2, 16, dtype=torch.float64)),
    (w8a16, "A", F8),
    (w8a16, "B", A16),
    (w8a16, "B_scale_", torch.ones(17)),
    (fp4, "A", A16),
    (fp4, "A_scale", torch.zeros(2, 3, dtype=torch.uint8)),
    (fp4, "A_scale", torch.zeros(3, 2, dtype=torch.uint8)),
    (fp4, "B", W4.contiguous()),
    (fp4, "B", W8),
    (fp4, "B_scale", torch.zeros(16, 2, dtype=torch.uint8)),
    (fp4, "bias_", torch.zeros(17)),
    (fp4_w4a8, "A", A16),
    (fp4_w4a8, "A_scale", torch.ones(3, 1)),
    (fp4_w4a8, "A_scale", torch.ones(2, 3)),
    (fp4_w4a8, "A_scale", torch.ones(1).double()),
    (fp4_w4a8, "B", W4.contiguous()),
    (fp4_w4a8, "B_scale", torch.zeros(3, 16, dtype=torch.uint8)),
    (fp4_w4a8, "out_dtype", torch.int32),
    (int8, "A", A16),
    (int8, "B", W8),
    (int8, "B", I8[:63]),
    (int8, "A_scale", torch.ones(3)),
    (int8, "B_scale", torch.ones(15)),
    (int8, "A_zp", torch.zeros(1)),
    (int8, "out_dtype", torch.int32),
    (int8, "bias", torch.zeros(17)),
    (int8_w8a16, "A", A8),
    (int8_w8a16, "B", I8[:63]),
    (int8_w8a16, "B", W8),
    (int8_w8a16, "bias", torch.zeros(17)),
    (int8_w8a16, "B_scale", torch.ones(3, 16)),
    (int8_w8a16, "B_scale", S4.double()),
    (int8_w8a16, "group_size", 0),
    (int8_w8a16, "g_idx", torch.zeros(63, dtype=torch.int64)),
    (int8_w8a16, "out_dtype", torch.int32),
]


@pytest.mark.parametrize(
    ("call", "name", "value"),
    WRONG,
    ids=[f"{c.__name__}-{n}-{i}" for i, (c, n, _) in enumerate(WRONG)],
)
def test_names_the_argument(call: Callable[..., torch.Tensor], name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"gemm\w*: {name} (is|has) "):
        call(**{name: value})


def test_paths_have_names() -> None:
    with pytest.raises(ConfigError, match="path is 'fast'"), ops.using("fast"):
        pass


@pytest.mark.runs
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("a", {"a": torch.zeros(2, 64, dtype=torch.int64)}),
        ("a", {"a": torch.zeros(64)}),
        ("a", {"a": torch.zeros(2, 0)}),
        ("b_type", {"b_type": "u5"}),
        ("b", {"b": torch.zeros(16, 64, dtype=torch.int32)}),
        ("a_scale", {"a_scale": torch.ones(3, 1)}),
        ("b_scale", {"b_scale": torch.ones(2, 1), "b_group": (1, 64)}),
        ("b_scale", {"b_scale": torch.ones(16, 1), "b_group": (0, 64)}),
        ("a_zero", {"a_zero": torch.zeros(1)}),
        ("b_zero", {"b_zero": torch.zeros(1)}),
        ("b_zero", {"b_zero": torch.zeros(1, 3, dtype=torch.int32), "b_group": (1, 64)}),
        ("bias", {"bias": torch.zeros(17)}),
        ("bias", {"bias": torch.zeros(32)[::2]}),
        ("out", {"out": torch.zeros(2, 17)}),
        ("out", {"out": torch.zeros(2, 16, dtype=torch.int32)}),
        ("out", {"out": torch.zeros(1, 16).expand(2, 16)}),
    ],
)
def test_the_compiled_op_checks_again(name: str, arguments: dict[str, object]) -> None:
    given = {"out": torch.zeros(2, 16), "a": torch.zeros(2, 64), "b": torch.zeros(16, 64)}
    with pytest.raises(RuntimeError, match=rf"qcore_xpu::matmul: {name} "):
        matmul(**{**given, **arguments})  # type: ignore[arg-type]


@pytest.mark.runs
def test_the_compiled_op_wants_tensors_where_the_queue_is() -> None:
    library.load()
    x = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match="path is 'x'"):
        torch.ops.qcore_xpu.matmul(x, x, "", None, 0, None, x, "", None, 1, 1, None, None, 0, "x")
