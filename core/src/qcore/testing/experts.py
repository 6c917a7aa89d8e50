"""`check_experts`: the results of kernels that run the experts of a mixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from qcore.kernels.moe import ExpertsKernel
from qcore.layers import MMLinearLayerConfig
from qcore.layers.moe import PROJECTIONS, ExpertsLayerConfig, MoeWNA16LayerConfig
from qcore.testing.configs import label
from qcore.testing.oracle import Expected, Oracle
from qcore.testing.outcome import Outcome, Worst
from qcore.testing.record import recorded
from qcore.testing.snapshot import Snapshot, layer_tensors
from qcore.testing.subject import Built, Kernel, subject_of
from qcore.testing.tensors import random_input

__all__ = ["check_experts", "expected_experts"]

_CHECK = "check_experts"
_BATCHES = (7, 1, 33, 0, 2)
_SLOPE = 1.13
"""No activation function of experts is steeper."""

_Function = Callable[[torch.Tensor], torch.Tensor]
_Bound = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def _as_they_are(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return gate, up


def _bounded(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Neither moves more than what comes in, so that errors are bounded as they were."""
    return gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1.0


_ACTIVATIONS: dict[str, tuple[_Function, _Bound]] = {
    "silu": (lambda g: g / (1 + torch.exp(-g)), _as_they_are),
    "gelu": (lambda g: 0.5 * g * (1 + torch.erf(g / 2**0.5)), _as_they_are),
    "gelu_tanh": (
        lambda g: 0.5 * g * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (g + 0.044715 * g**3))),
        _as_they_are,
    ),
    "swigluoai": (lambda g: g / (1 + torch.exp(-1.702 * g)), _bounded),
}
"""The function of the gate, and what is done to gate and up before their product."""

Routing = tuple[torch.Tensor, torch.Tensor]


@recorded
def check_experts(kernel: Kernel, config: MMLinearLayerConfig) -> Outcome:
    """The experts' outputs are right, for any number of tokens and any routing.

    Results are compared with float64, and allowed is what rounding can contribute, as for linear
    layers (`qcore.testing.oracle`). The form of the output, ids that name no expert, a NaN in a
    token, and batch invariance, where the spec claims it, are checked too; nothing that goes in may
    be changed.

    Raises:
        ConformanceError: something of this is not so.
    """
    subject = subject_of(kernel)
    if not isinstance(config, ExpertsLayerConfig):
        return Outcome(not_run="the layer is no mixture of experts")
    with subject.guarding(_CHECK, config, "building and packing the layer"):
        built = subject.build(config)
    weights = Snapshot(layer_tensors(built.layer))
    worst: Worst | None = None
    for seed, M in enumerate(_BATCHES):
        for strange in (False, True):
            x = random_input(config, M, seed)
            routing = _routing(config, M, seed, strange=strange)
            call = f"M={M}" + (", some ids name no expert" if strange else "")
            found = _compare(built, call, x, routing, _run(built, call, x, routing))
            worst = max((w for w in (worst, found) if w is not None), default=None)
    if changed := weights.difference(layer_tensors(built.layer)):
        raise subject.error(_CHECK, config, f"apply changes the layer: {changed}")
    _check_rows(built)
    return Outcome(worst=worst)


def _routing(config: ExpertsLayerConfig, M: int, seed: int, *, strange: bool = False) -> Routing:
    """(weights, ids) [M, J]; each token goes to different experts."""
    random = torch.Generator().manual_seed(seed)
    J, E = min(3, config.num_experts), config.num_experts
    ids = torch.rand((M, E), generator=random).argsort(1)[:, :J]
    weights = torch.rand((M, J), generator=random) + 0.1
    if strange:
        ids = torch.where(torch.rand((M, J), generator=random) < 0.3, E, ids)
    return weights, ids


def _run(built: Built, call: str, x: torch.Tensor, routing: Routing) -> torch.Tensor:
    """The output, on the CPU, once its form and the inputs are checked."""
    subject, config, kernel = built.subject, built.config, built.kernel
    assert isinstance(kernel, ExpertsKernel)
    names = ("x", "topk_weights", "topk_ids")
    moved = [t.to(subject.device) for t in (x, *routing)]
    given = dict(zip(names, moved, strict=True))
    before = Snapshot(given)
    with subject.guarding(_CHECK, config, f"apply ({call})"):
        out = kernel.apply(built.layer, *moved)
    if changed := before.difference(given):
        raise subject.error(_CHECK, config, f"{call}: apply changes its input: {changed}")
    form = (tuple(out.shape), out.dtype, out.device.type)
    wanted = (tuple(x.shape), x.dtype, given["x"].device.type)
    if form != wanted:
        raise subject.error(_CHECK, config, f"{call}: the output is {form}, it must be {wanted}")
    return out.cpu()


def _compare(
    built: Built, call: str, x: torch.Tensor, routing: Routing, out: torch.Tensor
) -> Worst | None:
    if not out.numel():
        return None
    expected = expected_experts(built, x, *routing)
    result = out.to(torch.float64)
    error = (result - expected.value).abs()
    ratio = torch.where(error == 0, torch.zeros_like(error), error / expected.allowed)
    ratio = torch.where(result.isfinite(), ratio, torch.full_like(ratio, float("inf")))
    at = int(ratio.reshape(-1).argmax())
    largest, off, allowed = (float(t.reshape(-1)[at]) for t in (ratio, error, expected.allowed))
    if largest > 1.0:
        wrong = int((ratio > 1.0).sum())
        problem = (
            f"{call}: {wrong} of {out.numel()} results are wrong; the worst, "
            f"{[int(i) for i in torch.unravel_index(torch.tensor(at), out.shape)]}, is "
            f"{float(result.reshape(-1)[at]):.6g} and must be "
            f"{float(expected.value.reshape(-1)[at]):.6g}: off by {off:.3g}, allowed {allowed:.3g}"
        )
        raise built.subject.error(_CHECK, built.config, problem)
    return Worst(largest, off, allowed, label(built.config), call)


def expected_experts(
    built: Built, x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor
) -> Expected:
    """The output in float64, and what is allowed around it."""
    config, subject = built.config, built.subject
    assert isinstance(config, ExpertsLayerConfig)
    act, bound = _ACTIVATIONS[config.activation]
    single = torch.finfo(torch.float32).eps / 2
    narrow = torch.finfo(x.dtype).eps / 2 if subject.arithmetic.activations is not None else 0.0
    value = torch.zeros(x.shape, dtype=torch.float64)
    allowed, summed = torch.zeros_like(value), torch.zeros_like(value)
    for expert in range(config.num_experts):
        tokens, places = torch.where(topk_ids == expert)
        if not len(tokens):
            continue
        first, second = (_oracle(built, name, expert) for name in PROJECTIONS)
        both = first.expect(x[tokens], _bias(built, "w13", expert))
        (gate, up), (gate_off, up_off) = (t.chunk(2, -1) for t in (both.value, both.allowed))
        gate, up = bound(gate, up)
        inner = act(gate) * up
        inner_off = act(gate).abs() * up_off + _SLOPE * gate_off * (up.abs() + up_off)
        inner_off = inner_off + (8 * single + narrow) * inner.abs()
        out = second.expect(inner, _bias(built, "w2", expert))
        out_off = out.allowed + 1.01 * inner_off @ second.weight.abs().t()
        weight = topk_weights[tokens, places, None].to(torch.float64)
        value.index_add_(0, tokens, weight * out.value)
        allowed.index_add_(0, tokens, weight.abs() * out_off)
        summed.index_add_(0, tokens, weight.abs() * out.value.abs())
    allowed = allowed + (topk_ids.shape[-1] + 4) * single * summed
    last = torch.finfo(x.dtype)
    rounding = last.eps / 2 * (value.abs() + allowed) + last.smallest_normal * last.eps
    return Expected(value, {"experts": allowed, "output": rounding})


def _oracle(built: Built, projection: str, expert: int) -> Oracle:
    config = built.config
    assert isinstance(config, ExpertsLayerConfig)
    out = "out_type" if isinstance(config, MoeWNA16LayerConfig) else "out_dtype"
    linear = replace(cast(Any, config.projection(projection)), **{out: torch.float32})
    names = {name: config.stacked_name(projection, name) for name in linear.params()}
    tensors = {n: built.tensors[s][expert] for n, s in names.items() if s in built.tensors}
    return built.subject.oracle(linear, tensors)


def _bias(built: Built, projection: str, expert: int) -> torch.Tensor | None:
    stack = built.tensors.get(f"{projection}_bias")
    return None if stack is None else stack[expert]


def _check_rows(built: Built) -> None:
    """A NaN stays in its token; with batch invariance, a token's bits do not depend on others."""
    subject, config = built.subject, built.config
    assert isinstance(config, ExpertsLayerConfig)
    x, routing = random_input(config, 33, 9), _routing(config, 33, 9)
    whole = _run(built, "M=33", x, routing)
    dirty = x.clone()
    dirty[2, config.hidden_size // 2] = float("nan")
    out = _run(built, "M=33, a NaN in token 2", dirty, routing)
    if not bool(out[2].isnan().all()):
        raise subject.error(_CHECK, config, "token 2 has a NaN, but not all of its results are")
    others = [token for token in range(33) if token != 2]
    chosen = (routing[0][others], routing[1][others])
    _compare(built, "the tokens beside one with a NaN", x[others], chosen, out[others])
    if not subject.declared.batch_invariant:
        return
    for rows in ([0], [32], [5, 1], list(range(5, 21)), list(range(33))[::-1]):
        part = _run(built, f"tokens {rows}", x[rows], (routing[0][rows], routing[1][rows]))
        differing = int((part != whole[rows]).sum())
        if differing:
            problem = f"tokens {rows}: {differing} of {part.numel()} results are not as with M=33"
            raise subject.error(_CHECK, config, problem)
