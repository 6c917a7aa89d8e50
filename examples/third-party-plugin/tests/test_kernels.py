"""The conformance kit on both kernels; this is all that testing a kernel takes."""

import pytest
import torch
from acme_qcore.int8 import FloatInt8ScaledMMLinearKernel
from acme_qcore.mixed_precision import DequantizedMPLinearKernel
from qcore import Int8ScaledMMLinearLayerConfig
from qcore.testing import Arithmetic, KernelConformance, check_numerics


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestDequantizedMP(KernelConformance):
    kernel_class = DequantizedMPLinearKernel
    # Dequantized weights are rounded to the activations' dtype: say so, and the bound knows it.
    arithmetic = Arithmetic(weights="input")


class TestFloatInt8(KernelConformance):
    kernel_class = FloatInt8ScaledMMLinearKernel


def test_more_inputs_than_one_chunk():
    """What the kit's small layers do not reach, we check with one of our own."""
    config = Int8ScaledMMLinearLayerConfig(
        is_static_input_scheme=False,
        is_channelwise=True,
        input_symmetric=False,
        weight_shape=(32, 2500),
        input_dtype=torch.bfloat16,
        out_dtype=torch.float32,
    )
    assert check_numerics(FloatInt8ScaledMMLinearKernel, config).worst.ratio < 1.0
    too_wide = Int8ScaledMMLinearLayerConfig(False, True, True, weight_shape=(32, 1 << 17))
    able, reason = FloatInt8ScaledMMLinearKernel.can_implement(too_wide)
    assert not able
    assert "K=131072" in reason
