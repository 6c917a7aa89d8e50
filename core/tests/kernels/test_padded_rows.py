"""`get_output_padding` of FP8 kernels: rows that the base appends and the child cuts off."""

import pytest
import torch
from qcore.facts import quant_key as qk
from qcore.kernels import FP8ScaledMMLinearKernel, process_weights
from qcore.layers import FP8ScaledMMLinearLayerConfig
from qcore.reference.kernels import ReferenceFP8ScaledMMLinearKernel as Reference
from qcore.testing import make_layer, random_input, random_tensors

LEAST = 17


class Padded(FP8ScaledMMLinearKernel):
    """As vLLM's kernels by ``torch._scaled_mm`` do it."""

    @classmethod
    def can_implement(cls, config):
        return True, None

    def get_output_padding(self):
        return LEAST

    def apply_scaled_mm(self, *, A, B, out_dtype, As, Bs, bias, output_shape):
        self.seen = (A, As)
        left = A.float() if As is None else A.float() * As
        out = left @ (B.float() * Bs.reshape(-1))
        return out[: output_shape[0]].to(out_dtype).view(output_shape)


@pytest.mark.parametrize("M", [0, 1, 2, 16, 17, 18, 40])
@pytest.mark.parametrize(
    "key",
    [None, qk.kFp8StaticTensorSym, qk.kFp8DynamicTensorSym, qk.kFp8DynamicTokenSym],
    ids=["weight-only", "static", "tensor", "token"],
)
def test_padded_rows(key, M):
    config = FP8ScaledMMLinearLayerConfig(
        qk.kFp8StaticChannelSym, key, (24, 48), torch.bfloat16, torch.bfloat16
    )
    outs = []
    for kernel_class in (Reference, Padded):
        kernel = kernel_class(config)
        layer = make_layer(config, random_tensors(config))
        process_weights(kernel, layer)
        outs.append(kernel.apply_weights(layer, random_input(config, M)))
    torch.testing.assert_close(*outs)
    codes, scale = kernel.seen
    if key is None:
        assert len(codes) == M
        assert scale is None
        return
    assert len(codes) == max(M, LEAST)
    assert codes.dtype == torch.float8_e4m3fn
    assert not codes[M:].float().any()
    if key.scale.group_shape.is_per_token():
        assert scale.shape == (max(M, LEAST), 1)
    else:
        assert scale.numel() == 1
