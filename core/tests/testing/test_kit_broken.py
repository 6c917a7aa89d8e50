"""Kernels that are wrong in one way each, and the check that must find it."""

import json
from dataclasses import replace

import pytest
import torch
from qcore.errors import ConfigError
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import (
    Int8ScaledMMLinearKernel,
    MPLinearKernel,
    NvFp4LinearKernel,
    answer,
)
from qcore.layers import Int8ScaledMMLinearLayerConfig, MPLinearLayerConfig
from qcore.numerics.activation_quant import dynamic_int8_quant
from qcore.numerics.dequantize import dequantize_weight
from qcore.plugin import KernelSpec, Numerics, Platform
from qcore.testing import (
    ConformanceError,
    Subject,
    check_claimed,
    check_kernel,
    check_opcheck,
)


def mp(kind=scalar_types.uint4b8, act=torch.float32, K=128, N=64, group=32, zero_points=False):
    return MPLinearLayerConfig((K, N), (K, N), kind, act, group, zero_points)


CONFIGS = (
    mp(),
    mp(act=torch.bfloat16),
    mp(kind=scalar_types.uint4, zero_points=True, K=96, N=40),
    mp(kind=scalar_types.uint8b128, act=torch.float16, group=-1),
)


class Good(MPLinearKernel):
    """Dequantizes when it packs; the broken ones change one thing each."""

    @classmethod
    def can_implement(cls, config):
        return answer(config.has_g_idx and "g_idx is not implemented")

    def pack_weights(self, tensors):
        return {"dense": dequantize_weight(self.config, tensors)}

    def apply_weights(self, layer, x, bias=None):
        out = x.float() @ layer.dense.t()
        if bias is not None:
            out = out + bias.float()
        return out.to(self.config.out_type or x.dtype)


class WrongScale(Good):
    def pack_weights(self, tensors):
        return {"dense": super().pack_weights(tensors)["dense"] * 1.02}


class WrongGroup(Good):
    """The scales of two neighbouring groups change places."""

    def pack_weights(self, tensors):
        scale = tensors["weight_scale"].clone()
        if scale.shape[1] > 1:
            scale[:, [0, 1]] = scale[:, [1, 0]]
        return super().pack_weights({**tensors, "weight_scale": scale})


class OffByOneZero(Good):
    """GPTQ's old convention: the stored zero point is one less."""

    def pack_weights(self, tensors):
        dense = super().pack_weights(tensors)["dense"]
        scale = dequantize_scale(self.config, tensors)
        return {"dense": dense - scale if self.config.zero_points else dense}


def dequantize_scale(config, tensors):
    size = config.in_features if config.group_size == -1 else config.group_size
    return tensors["weight_scale"].float().repeat_interleave(size, 1)[:, : config.in_features]


class IgnoresBias(Good):
    def apply_weights(self, layer, x, bias=None):
        return super().apply_weights(layer, x)


class WrongOnNoRows(Good):
    def apply_weights(self, layer, x, bias=None):
        if x.numel() == 0:
            return x
        return super().apply_weights(layer, x, bias)


class FailsOnNoRows(Good):
    def apply_weights(self, layer, x, bias=None):
        x.abs().max()
        return super().apply_weights(layer, x, bias)


class WritesToItsInput(Good):
    def apply_weights(self, layer, x, bias=None):
        out = super().apply_weights(layer, x, bias)
        x.mul_(0.5)
        return out


class WritesToItsWeights(Good):
    def apply_weights(self, layer, x, bias=None):
        layer.dense[0, 0] += 1e-6
        return super().apply_weights(layer, x, bias)


class ReusesItsOutput(Good):
    def apply_weights(self, layer, x, bias=None):
        out = super().apply_weights(layer, x, bias)
        if out.dim() != 2:
            return out
        if not hasattr(self, "buffer"):
            self.buffer = torch.empty(64, out.shape[1], dtype=out.dtype)
        self.buffer[: len(out)] = out
        return self.buffer[: len(out)]


class WrongDtype(Good):
    def apply_weights(self, layer, x, bias=None):
        return super().apply_weights(layer, x, bias).float()


class NeedsTwoDimensions(Good):
    def apply_weights(self, layer, x, bias=None):
        return super().apply_weights(layer, x.view(x.shape[0], -1), bias)


class AssumesContiguous(Good):
    def apply_weights(self, layer, x, bias=None):
        same = torch.as_strided(x, x.shape, torch.empty(x.shape, device="meta").stride())
        return super().apply_weights(layer, same, bias)


class CrossesRows(Good):
    """Adds a little of the first row to the last."""

    def apply_weights(self, layer, x, bias=None):
        rows = x.reshape(-1, x.shape[-1]).clone()
        if len(rows) > 4:
            rows[-1] += 0.0 * rows[2]
        return super().apply_weights(layer, rows.reshape(x.shape), bias)


class HidesNan(Good):
    def apply_weights(self, layer, x, bias=None):
        return super().apply_weights(layer, torch.nan_to_num(x), bias)


class DependsOnTheBatch(Good):
    def apply_weights(self, layer, x, bias=None):
        out = super().apply_weights(layer, x, bias)
        return out * (1 + torch.finfo(out.dtype).eps) if out[..., 0].numel() > 16 else out


class UnstablePacking(Good):
    count = 0

    def pack_weights(self, tensors):
        UnstablePacking.count += 1
        return {**super().pack_weights(tensors), "scratch": torch.tensor(UnstablePacking.count)}


class ChangesWhatItPacks(Good):
    def pack_weights(self, tensors):
        packed = super().pack_weights(tensors)
        tensors["weight_scale"].neg_()
        return packed


class PacksTwice(Good):
    """Old style, by hand: it forgets to leave a packed layer alone, and drops what it needs."""

    def process_weights_after_loading(self, layer):
        layer.weight_packed.data.bitwise_not_()
        super().process_weights_after_loading(layer)


class NoReasons(Good):
    @classmethod
    def can_implement(cls, config):
        return (not config.has_g_idx, None if not config.has_g_idx else "no")


class NoTuple(Good):
    @classmethod
    def can_implement(cls, config):
        return not config.has_g_idx


class Raises(Good):
    @classmethod
    def can_implement(cls, config):
        raise AssertionError(config)


class RefusesAll(Good):
    @classmethod
    def can_implement(cls, config):
        return False, "it is not finished yet"


class BuildsWhatItRefuses(Good):
    @classmethod
    def can_implement(cls, config):
        return answer(config.group_size == -1 and "no channel scales")

    def __init__(self, config):
        self.config = config
        self.w_q_name, self.w_s_name = "weight_packed", "weight_scale"
        self.w_zp_name, self.w_gidx_name = "weight_zero_point", None


class BreaksTheGraph(Good):
    def apply_weights(self, layer, x, bias=None):
        if x.numel() and x.flatten()[0].item() > 100:
            x = x * 1.0
        return super().apply_weights(layer, x, bias)


class CompilesForEachM(Good):
    def apply_weights(self, layer, x, bias=None):
        rows = {n: n for n in range(64)}[x.shape[0]] if x.dim() == 2 else 0
        out = super().apply_weights(layer, x, bias)
        return out + 0.0 * rows


BROKEN = [
    (WrongScale, "check_numerics"),
    (WrongGroup, "check_numerics"),
    (OffByOneZero, "check_numerics"),
    (IgnoresBias, "check_numerics"),
    (WrongOnNoRows, "check_contract"),
    (FailsOnNoRows, "check_contract"),
    (WritesToItsInput, "check_contract"),
    (WritesToItsWeights, "check_contract"),
    (ReusesItsOutput, "check_contract"),
    (WrongDtype, "check_contract"),
    (NeedsTwoDimensions, "check_contract"),
    (AssumesContiguous, "check_numerics"),
    (CrossesRows, "check_nan_propagation"),
    (HidesNan, "check_nan_propagation"),
    (UnstablePacking, "check_packing"),
    (ChangesWhatItPacks, "check_packing"),
    (PacksTwice, "check_packing"),
    (NoReasons, "check_answers"),
    (NoTuple, "check_answers"),
    (Raises, "check_answers"),
    (RefusesAll, "check_answers"),
    (BuildsWhatItRefuses, "check_refusals"),
    (BreaksTheGraph, "check_compile"),
    (CompilesForEachM, "check_compile"),
]


def report_on(kernel_class, configs=CONFIGS, **kwargs):
    return check_kernel(kernel_class, configs=configs, raise_on_failure=False, **kwargs)


def test_the_good_one_conforms():
    report = report_on(Good)
    assert report.ok, report.render()


@pytest.mark.parametrize(("kernel_class", "check"), BROKEN, ids=lambda v: getattr(v, "__name__", v))
def test_the_right_check_finds_it(kernel_class, check):
    refused = MPLinearLayerConfig(
        (128, 64), (128, 64), scalar_types.uint4b8, torch.float32, 32, False, has_g_idx=True
    )
    report = report_on(kernel_class, configs=(*CONFIGS, refused))
    assert check in {failure.check for failure in report.failures}, report.render()
    for failure in report.failures:
        assert kernel_class.__name__ in str(failure)
    assert json.dumps(report.to_dict())
    with pytest.raises(ConformanceError, match="DOES NOT CONFORM"):
        report.raise_if_failed()


def test_what_only_one_check_can_find_is_found_by_it_alone():
    for kernel_class, check in BROKEN:
        if kernel_class in (HidesNan, CrossesRows, UnstablePacking, ChangesWhatItPacks):
            found = {failure.check for failure in report_on(kernel_class).failures}
            assert found == {check}, kernel_class


def test_batch_invariance_is_checked_if_it_is_claimed():
    def spec(claim):
        return KernelSpec(
            "DependsOnTheBatch", "mp", (Platform.CPU,), "m:DependsOnTheBatch", batch_invariant=claim
        )

    configs = CONFIGS[:1]
    assert report_on(DependsOnTheBatch, configs, spec=spec(False)).ok
    failures = report_on(DependsOnTheBatch, configs, spec=spec(True)).failures
    assert {f.check for f in failures} == {"check_batch_invariance"}


def test_a_wrong_result_is_shown_with_its_bound():
    report = report_on(WrongScale, CONFIGS[:1], checks=["check_numerics"])
    text = str(report.failures[0])
    for part in ("WrongScale fails check_numerics", "uint4b8 g32", "M=7", "must be", "allowed"):
        assert part in text
    for name in ("accumulation", "ties", "operands", "output"):
        assert name in text


def test_a_kernel_that_cannot_run_here_is_not_passed_in_silence():
    class Elsewhere(Good):
        @classmethod
        def is_supported(cls, compute_capability=None):
            return False, "needs a machine that is not here"

    with pytest.raises(ConformanceError, match="a machine that is not here"):
        check_kernel(Elsewhere, configs=CONFIGS)
    spec = KernelSpec("Good", "mp", (Platform.CPU,), "m:Good", modules=("no_such_module_here",))
    with pytest.raises(ConformanceError, match="no_such_module_here"):
        check_kernel(Good, configs=CONFIGS, spec=spec)


# -- int8: ties may be rounded either way, everything else must be exact -------------------------


class ByReciprocal(Int8ScaledMMLinearKernel):
    """Multiplies by 1 / scale: other codes at ties, and right nevertheless."""

    factor = 1.0

    @classmethod
    def can_implement(cls, config):
        return answer(
            (config.is_static_input_scheme or not config.input_symmetric)
            and "dynamic symmetric activations only"
        )

    def apply_weights(self, layer, x, bias=None):
        rows = x.reshape(-1, x.shape[-1]).float()
        _, scale, _ = dynamic_int8_quant(rows)
        codes = torch.round(rows * (1.0 / scale) * self.factor).clamp(-127, 127)
        codes = torch.where(scale.isnan(), torch.zeros_like(codes), codes)
        product = (codes.double() @ layer.weight.double().t()).float()
        out = product * scale * layer.weight_scale.float().reshape(1, -1)
        if bias is not None:
            out = out + bias.float()
        dtype = self.config.out_dtype or x.dtype
        return out.to(dtype).reshape(*x.shape[:-1], -1 if out.numel() else out.shape[-1])


class FloorsCodes(ByReciprocal):
    factor = 1.001  # wrong codes not only at ties


def test_int8_codes_may_differ_at_ties_only():
    configs = [
        Int8ScaledMMLinearLayerConfig(False, True, True, False, (N, K), dtype, torch.float32)
        for N, K in ((16, 64), (64, 512))
        for dtype in (torch.bfloat16, torch.float32)
    ]
    assert report_on(ByReciprocal, configs).ok
    assert not report_on(FloorsCodes, configs, checks=["check_numerics"]).ok


# -- operators ---------------------------------------------------------------------------------

LIBRARY = torch.library.Library("qcore_kit_test", "DEF")
LIBRARY.define("good(Tensor x, Tensor w) -> Tensor")
LIBRARY.define("no_fake(Tensor x, Tensor w) -> Tensor")
LIBRARY.define("undeclared(Tensor x, Tensor w) -> Tensor")


def _product(x, w):
    return x.float() @ w.t()


def _writes(x, w):
    out = _product(x, w)
    x.add_(1)
    return out


for _name, _function in (("good", _product), ("no_fake", _product), ("undeclared", _writes)):
    LIBRARY.impl(_name, _function, "CPU")
for _name in ("good", "undeclared"):
    torch.library.register_fake(
        f"qcore_kit_test::{_name}", lambda x, w: x.new_empty(x.shape[0], w.shape[0], dtype=w.dtype)
    )


class CallsAnOperator(Good):
    op = "good"

    def apply_weights(self, layer, x, bias=None):
        rows = x.reshape(-1, x.shape[-1])
        out = getattr(torch.ops.qcore_kit_test, self.op)(rows, layer.dense)
        if bias is not None:
            out = out + bias.float()
        out = out.reshape(*x.shape[:-1], layer.dense.shape[0])
        return out.to(self.config.out_type or x.dtype)


class NoFake(CallsAnOperator):
    op = "no_fake"


class Undeclared(CallsAnOperator):
    op = "undeclared"


def test_operators_are_found_and_checked():
    config = CONFIGS[0]
    assert check_opcheck(CallsAnOperator, config).not_run == ""
    assert "no custom operator" in check_opcheck(Good, config).not_run
    for wrong in (NoFake, Undeclared):
        with pytest.raises(ConformanceError, match=f"qcore_kit_test.{wrong.op}"):
            check_opcheck(wrong, config)
    failures = report_on(NoFake).failures
    assert {f.check for f in failures} == {"check_opcheck", "check_compile"}


# -- what a kernel declares ----------------------------------------------------------------------


def test_an_approximate_kernel_needs_a_tolerance_and_only_it_has_one():
    spec = KernelSpec(
        "WrongScale", "mp", (Platform.CPU,), "m:WrongScale", numerics=Numerics.APPROXIMATE
    )
    with pytest.raises(ConfigError, match="its tolerance must be given"):
        Subject(WrongScale, spec=spec)
    with pytest.raises(ConfigError, match="only an approximate kernel has"):
        Subject(WrongScale, tolerance=0.1)
    with pytest.raises(ConfigError, match="the class is Good"):
        Subject(Good, spec=spec, tolerance=0.1)
    assert report_on(WrongScale, spec=spec, tolerance=0.1, checks=["check_numerics"]).ok
    assert not report_on(WrongScale, spec=spec, tolerance=1e-4, checks=["check_numerics"]).ok


def test_a_weight_only_kernel_is_measured_against_unrounded_activations():
    class WeightOnlyNvFp4(NvFp4LinearKernel):
        @classmethod
        def can_implement(cls, config):
            return True, None

        def pack_weights(self, tensors):
            return {"dense": dequantize_weight(self.config, tensors)}

        def apply_weights(self, layer, x, bias=None):
            out = x.float() @ layer.dense.t()
            out = out if bias is None else out + bias.float()
            return out.to(self.config.out_dtype or x.dtype)

    spec = KernelSpec(
        "WeightOnlyNvFp4", "nvfp4", ("cpu",), "m:WeightOnlyNvFp4", numerics="weight_only"
    )
    checks = ["check_numerics", "check_nan_propagation"]
    assert check_kernel(WeightOnlyNvFp4, spec=spec, checks=checks).ok
    exact = check_kernel(WeightOnlyNvFp4, checks=checks, raise_on_failure=False)
    assert {f.check for f in exact.failures} == {"check_numerics", "check_nan_propagation"}


FOUND_BY_CLAIMED = [c for c, check in BROKEN if check != "check_answers"]


@pytest.mark.parametrize("kernel_class", FOUND_BY_CLAIMED, ids=lambda c: c.__name__)
def test_check_claimed_finds_them_too(kernel_class):
    configs = (*CONFIGS, replace(CONFIGS[0], has_g_idx=True))
    with pytest.raises(ConformanceError, match=kernel_class.__name__):
        check_claimed(Subject(kernel_class), configs, "contract", "a test's kernel")


def test_check_claimed_says_which_layers():
    refused = replace(CONFIGS[0], has_g_idx=True)
    who = Subject(Good)
    assert check_claimed(who, (refused, *CONFIGS), "contract", "a test's kernel") == [*CONFIGS]
    with pytest.raises(ConfigError, match="none of the 1 layers"):
        check_claimed(who, [refused], "contract", "a test's kernel")
    with pytest.raises(ConfigError, match="how is 'seen'"):
        check_claimed(who, CONFIGS, "seen", "a test's kernel")
