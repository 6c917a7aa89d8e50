"""The kit finds what is wrong with kernels of experts."""

import pytest
import torch
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import CompositeLinearKernel, MoeWNA16LayerConfig
from qcore.reference.moe import ReferenceMoeWNA16Kernel
from qcore.registry.entry import check_kernel_class
from qcore.testing import ConformanceError, check_experts, check_kernel

CONFIG = MoeWNA16LayerConfig(4, 64, 96, scalar_types.uint4b8, torch.float32, 32, False)


class WithoutWeights(ReferenceMoeWNA16Kernel):
    def apply(self, layer, x, topk_weights, topk_ids):
        return super().apply(layer, x, torch.ones_like(topk_weights), topk_ids)


class UpForGate(ReferenceMoeWNA16Kernel):
    def project(self, layer, projection, expert, rows):
        out = super().project(layer, projection, expert, rows)
        return out.roll(out.shape[-1] // 2, -1) if projection == "w13" else out


class ClampsIds(ReferenceMoeWNA16Kernel):
    def apply(self, layer, x, topk_weights, topk_ids):
        return super().apply(layer, x, topk_weights, topk_ids.clamp(max=3))


class InPlace(ReferenceMoeWNA16Kernel):
    def apply(self, layer, x, topk_weights, topk_ids):
        return x.copy_(super().apply(layer, x, topk_weights, topk_ids))


class RoundsBetween(ReferenceMoeWNA16Kernel):
    def intermediate(self, rows, x):
        return rows.bfloat16().float()


class Wide(ReferenceMoeWNA16Kernel):
    def apply(self, layer, x, topk_weights, topk_ids):
        return super().apply(layer, x, topk_weights, topk_ids).double()


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (WithoutWeights, "results are wrong"),
        (UpForGate, "results are wrong"),
        (RoundsBetween, "results are wrong"),
        (ClampsIds, "some ids name no expert: .* results are wrong"),
        (InPlace, "apply changes its input: tensor 'x'"),
        (Wide, "the output is .*float64"),
    ],
)
def test_what_is_wrong_is_found(kernel, words):
    with pytest.raises(ConformanceError, match=words):
        check_experts(kernel, CONFIG)


def test_only_checks_of_experts_are_run():
    report = check_kernel(ReferenceMoeWNA16Kernel, configs=[CONFIG])
    assert set(report.checks) == {"check_answers", "check_packing", "check_experts"}


def test_a_composite_is_no_kernel_of_experts():
    class Both(CompositeLinearKernel):
        kernel_type = "moe_wna16"
        parts = ((None, ReferenceMoeWNA16Kernel),)

    assert "does not derive from MoeWNA16Kernel" in check_kernel_class(Both, "moe_wna16")
