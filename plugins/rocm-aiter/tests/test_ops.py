"""What the ops refuse, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_machine import CpuMachine
from qcore.errors import ConfigError
from qcore_rocm import ops

F32, BF16 = torch.float32, torch.bfloat16


def int8(**changed: Any) -> torch.Tensor:
    given: dict[str, Any] = {
        "x": torch.ones(2, 30),
        "weight": torch.ones(5, 32, dtype=torch.int8),
        "weight_scale": torch.ones(5),
        "bias": None,
        "input_scale": None,
        "input_azp": None,
        "azp_adj": None,
        "out_dtype": F32,
    }
    return ops.INT8_LINEAR(**{**given, **changed})


def w4a16(**changed: Any) -> torch.Tensor:
    given: dict[str, Any] = {
        "x": torch.ones(2, 60, dtype=BF16),
        "codes": torch.zeros(5, 8, dtype=torch.int32),
        "scale": torch.ones(5, 2),
        "zeros": None,
        "bias": None,
        "zero": 8,
        "group": 32,
        "out_dtype": BF16,
    }
    return ops.W4A16_LINEAR(**{**given, **changed})


def fp8(**changed: Any) -> torch.Tensor:
    given: dict[str, Any] = {
        "x": torch.ones(2, 32),
        "weight": torch.ones(5, 32, dtype=torch.uint8),
        "weight_scale": torch.ones(1),
        "bias": None,
        "input_scale": None,
        "upper_bound": None,
        "per_token": True,
        "out_dtype": F32,
    }
    return ops.FP8_LINEAR(**{**given, **changed})


def block(**changed: Any) -> torch.Tensor:
    given: dict[str, Any] = {
        "x": torch.ones(2, 200),
        "weight": torch.ones(130, 256, dtype=torch.uint8),
        "weight_scale": torch.ones(2, 2),
        "bias": None,
        "block_n": 128,
        "out_dtype": F32,
    }
    return ops.FP8_BLOCK_LINEAR(**{**given, **changed})


@pytest.mark.parametrize(
    ("run", "changed", "named"),
    [
        (int8, {"x": torch.ones(2, 40)}, "x"),
        (int8, {"x": torch.ones(2, 16)}, "x"),
        (int8, {"x": torch.ones(2, 32, dtype=torch.float64)}, "x"),
        (int8, {"x": torch.ones(())}, "x"),
        (int8, {"weight": torch.ones(5, 30, dtype=torch.int8)}, "weight"),
        (int8, {"weight": torch.ones(5, 32, dtype=torch.uint8)}, "weight"),
        (int8, {"weight": torch.ones(32, 16, dtype=torch.int8).t()}, "weight"),
        (int8, {"weight_scale": torch.ones(4)}, "weight_scale"),
        (int8, {"weight_scale": torch.ones(5, dtype=BF16)}, "weight_scale"),
        (int8, {"bias": torch.ones(4)}, "bias"),
        (int8, {"bias": torch.ones(5, dtype=torch.int32)}, "bias"),
        (int8, {"input_scale": torch.ones(2)}, "input_scale"),
        (int8, {"input_azp": torch.ones(1, dtype=torch.int32)}, "input_azp"),
        (int8, {"azp_adj": torch.ones(1, dtype=torch.int32)}, "azp_adj"),
        (
            int8,
            {"input_scale": torch.ones(1), "azp_adj": torch.ones(5, dtype=torch.int32)},
            "input_azp",
        ),
        (int8, {"out_dtype": torch.float64}, "out_dtype"),
        (fp8, {"weight": torch.ones(5, 32, dtype=torch.int8)}, "weight"),
        (fp8, {"upper_bound": torch.ones(2)}, "upper_bound"),
        (block, {"x": torch.ones(2, 128)}, "x"),
        (block, {"weight": torch.ones(130, 192, dtype=torch.uint8)}, "weight"),
        (block, {"weight_scale": torch.ones(1, 2)}, "weight_scale"),
        (block, {"block_n": 64}, "weight_scale"),
        (block, {"block_n": 0}, "block_n"),
        (block, {"bias": torch.ones(128)}, "bias"),
        (w4a16, {"x": torch.ones(2, 60)}, "x"),
        (w4a16, {"x": torch.ones(2, 56, dtype=BF16)}, "x"),
        (w4a16, {"group": 12}, "group"),
        (w4a16, {"group": 0}, "group"),
        (w4a16, {"codes": torch.zeros(40, dtype=torch.int32)}, "codes"),
        (w4a16, {"scale": torch.ones(5, 3)}, "scale"),
        (w4a16, {"zeros": torch.zeros(5, 2)}, "zeros"),
        (w4a16, {"bias": torch.ones(6)}, "bias"),
    ],
)
def test_refused(run: Any, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"linear: {named} is .*it must be"):
        run(**changed)


def test_no_rows_and_no_outputs() -> None:
    """Nothing to do needs no GPU."""
    assert int8(x=torch.ones(0, 30)).shape == (0, 5)
    assert w4a16(x=torch.ones(2, 0, 60, dtype=BF16)).shape == (2, 0, 5)
    assert fp8(x=torch.ones(0, 32), per_token=False).shape == (0, 5)


def test_which_kernels(on_machine: CpuMachine) -> None:
    """Few rows, a tile of 16, a tile of 64."""
    for rows, tile in ((1, 16), (16, 16), (17, 64)):
        on_machine.launched.clear()
        int8(x=torch.ones(rows, 30))
        assert on_machine.launched == ["quantize_int8_f32", f"scaled_mm_int8_{tile}"]
    for rows, kernel in ((1, "few"), (4, "few"), (5, "16"), (17, "64")):
        on_machine.launched.clear()
        w4a16(x=torch.ones(rows, 60, dtype=BF16))
        assert on_machine.launched == [f"w4a16_bf16_{kernel}"]
