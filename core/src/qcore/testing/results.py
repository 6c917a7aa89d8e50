"""Checks of a kernel's results: contract, numerics, NaN, batch invariance."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from qcore.layers import Fp8BlockScaledMMLinearLayerConfig, MMLinearLayerConfig
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.testing.configs import label
from qcore.testing.oracle import Oracle
from qcore.testing.outcome import Outcome, Worst
from qcore.testing.record import recorded
from qcore.testing.snapshot import Snapshot, layer_tensors
from qcore.testing.subject import Built, Kernel, Subject, subject_of
from qcore.testing.tensors import output_dtype, random_bias, random_input, shape_of

__all__ = [
    "BATCHES",
    "check_batch_invariance",
    "check_contract",
    "check_nan_propagation",
    "check_numerics",
    "compare",
]

BATCHES = (7, 1, 33, 0, 8, 2, 7)
"""Numbers of rows, in the order in which they are tried."""

Call = tuple[str, torch.Tensor, "torch.Tensor | None"]


def _built(
    subject: Subject, check: str, config: MMLinearLayerConfig, *, seed: int = 0, variant: int = 0
) -> Built:
    with subject.guarding(check, config, "building and packing the layer"):
        return subject.build(config, seed=seed, variant=variant)


def _apply(
    built: Built, check: str, call: str, x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    with built.subject.guarding(check, built.config, f"apply_weights ({call})"):
        return built.apply(x, bias)


# -- contract ----------------------------------------------------------------------------------


@recorded
def check_contract(kernel: Kernel, config: MMLinearLayerConfig) -> Outcome:
    """A call gives [..., N] in the right dtype on the right device, and changes nothing else.

    Neither the input, nor the bias, nor the layer's tensors are written to, the output shares no
    memory with them, and a later call does not change an earlier output.

    Raises:
        ConformanceError: something of this is not so.
    """
    subject, check = subject_of(kernel), "check_contract"
    built = _built(subject, check, config)
    weights = Snapshot(layer_tensors(built.layer))
    earlier: list[tuple[str, torch.Tensor, Snapshot]] = []
    for call, x, bias in _shaped_calls(config, subject.device):
        given = {"x": x} if bias is None else {"x": x, "bias": bias}
        before = Snapshot(given)
        out = _apply(built, check, call, x, bias)
        _check_form(built, check, call, x, out)
        if changed := before.difference(given):
            raise subject.error(check, config, f"{call}: the call changes its argument: {changed}")
        if out.numel() and out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            raise subject.error(check, config, f"{call}: the output shares memory with the input")
        for old_call, old, kept in earlier:
            if changed := kept.difference({"output": old}):
                raise subject.error(
                    check,
                    config,
                    f"{call} changes the output of the call before, {old_call}: {changed}",
                )
        earlier.append((call, out, Snapshot({"output": out})))
    if changed := weights.difference(layer_tensors(built.layer)):
        raise subject.error(check, config, f"the calls change the layer: {changed}")
    return Outcome()


def _check_form(built: Built, check: str, call: str, x: torch.Tensor, out: object) -> None:
    subject, config = built.subject, built.config
    if not isinstance(out, torch.Tensor):
        raise subject.error(check, config, f"{call}: the output is {type(out).__name__}")
    N, _ = shape_of(config)
    for what, measured, wanted in (
        ("shape", list(out.shape), [*x.shape[:-1], N]),
        ("dtype", out.dtype, output_dtype(config)),
        ("device", out.device, x.device),
    ):
        if measured != wanted:
            problem = f"{call}: the output has {what} {measured}; it must have {wanted}"
            raise subject.error(check, config, problem)


def _shaped_calls(config: MMLinearLayerConfig, device: str) -> Iterator[Call]:
    """Inputs of every form that callers use, on the device."""
    _, K = shape_of(config)
    bias = random_bias(config, 1).to(device)
    make = _on(config, device)
    yield "M=6", make(6), None
    yield "M=6 with bias", make(6), bias
    yield "x of one dimension", make(1)[0], bias
    yield "x of three dimensions", make(6).reshape(2, 3, K), bias
    yield "x of three dimensions, none of it", make(0).reshape(2, 0, K), None
    yield "every other row of x", make(10)[::2], None
    yield "x within wider rows, from an odd offset", _within_wider_rows(make(5)), bias
    yield "x with its columns contiguous", make(5).t().contiguous().t(), None
    yield "every other column of x", _every_other_column(make(5)), None
    yield "one row, expanded", make(1).expand(4, K), None


def _on(config: MMLinearLayerConfig, device: str) -> Callable[[int], torch.Tensor]:
    return lambda M: random_input(config, M, seed=M).to(device)


def _within_wider_rows(x: torch.Tensor) -> torch.Tensor:
    wide = x.new_zeros(len(x), x.shape[1] + 3)
    wide[:, 1:-2] = x
    return wide[:, 1:-2]


def _every_other_column(x: torch.Tensor) -> torch.Tensor:
    wide = x.new_zeros(len(x), 2 * x.shape[1])
    wide[:, ::2] = x
    return wide[:, ::2]


# -- numerics ----------------------------------------------------------------------------------


@recorded
def check_numerics(kernel: Kernel, config: MMLinearLayerConfig) -> Outcome:
    """Results are those of `reference_linear` in float64, up to what rounding can explain.

    Several numbers of rows out of order, with and without bias, inputs of every form, and tensors
    in every shape and dtype that the canonical layout allows. What is allowed is derived from the
    dtypes: see `qcore.testing.oracle`.

    Raises:
        ConformanceError: a result is further off.
    """
    subject, check = subject_of(kernel), "check_numerics"
    worst: list[Worst] = []
    for variant in range(_variants(config)):
        built = _built(subject, check, config, seed=variant, variant=variant)
        oracle = subject.oracle(config, built.tensors)
        calls = list(_numeric_calls(config, subject.device, first=variant == 0))
        # All calls first: a result that a later call overwrites is wrong as well.
        outputs = [_apply(built, check, call, x, bias) for call, x, bias in calls]
        for (call, x, bias), out in zip(calls, outputs, strict=True):
            named = call if variant == 0 else f"{call}, variant {variant} of the tensors"
            found = compare(built, oracle, check, named, x, bias, out)
            worst += [found] if found else []
    return Outcome(worst=max(worst, default=None))


def _variants(config: MMLinearLayerConfig) -> int:
    """How many variants `random_tensors` has, so that each shape and dtype occurs."""
    specs = [spec for spec in config.params().values() if not spec.optional]
    return max(max(len(spec.shape), len(spec.dtypes)) for spec in specs)


def _numeric_calls(config: MMLinearLayerConfig, device: str, *, first: bool) -> Iterator[Call]:
    bias = random_bias(config, 2).to(device)
    make = _on(config, device)
    if not first:
        yield "M=5 with bias", make(5), bias
        return
    for index, M in enumerate(BATCHES):
        with_bias = index % 2 == 0
        yield f"M={M}{' with bias' if with_bias else ''}", make(M), bias if with_bias else None
    yield from _shaped_calls(config, device)


def compare(
    built: Built,
    oracle: Oracle,
    check: str,
    call: str,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> Worst | None:
    """Compare a result with what it must be.

    Returns:
        The largest error in relation to what is allowed; None for an empty result.

    Raises:
        ConformanceError: an error is larger than allowed.
    """
    _check_form(built, check, call, x, out)
    if not out.numel():
        return None
    expected = oracle.expect(x.cpu(), None if bias is None else bias.cpu())
    result = out.cpu().to(torch.float64)
    error = (result - expected.value).abs()
    allowed = expected.allowed
    ratio = torch.where(error == 0, torch.zeros_like(error), error / allowed)
    ratio = torch.where(result.isfinite(), ratio, torch.full_like(ratio, float("inf")))
    at = int(ratio.reshape(-1).argmax())
    worst = Worst(
        float(ratio.reshape(-1)[at]),
        float(error.reshape(-1)[at]),
        float(allowed.reshape(-1)[at]),
        label(built.config),
        call,
    )
    if worst.ratio > 1.0:
        position = ", ".join(str(int(i)) for i in torch.unravel_index(torch.tensor(at), out.shape))
        wrong = int((ratio > 1.0).sum())
        parts = ", ".join(
            f"{name} {float(part.reshape(-1)[at]):.3g}" for name, part in expected.parts.items()
        )
        problem = (
            f"{call}: {wrong} of {out.numel()} results are wrong; the worst, [{position}], is "
            f"{float(result.reshape(-1)[at]):.6g} and must be "
            f"{float(expected.value.reshape(-1)[at]):.6g}: off by {worst.error:.3g}, "
            f"allowed {worst.allowed:.3g} ({parts})"
        )
        raise built.subject.error(check, built.config, problem)
    return worst


# -- rows --------------------------------------------------------------------------------------


def _rows_mix(config: MMLinearLayerConfig) -> bool:
    """Whether the scheme itself makes a row's result depend on the others: one computed scale."""
    if isinstance(config, MPLinearLayerConfig):
        return False
    key = getattr(config, "activation_quant_key", None)
    if key is None:
        return False
    if isinstance(config, Fp8BlockScaledMMLinearLayerConfig) and not key.scale.static:
        return False
    return any(
        level is not None and not level.static and level.group_shape.is_per_tensor()
        for level in (key.scale, key.scale2)
    )


@recorded
def check_nan_propagation(kernel: Kernel, config: MMLinearLayerConfig) -> Outcome:
    """A NaN in one row of the input shows in that row of the output and in no other.

    Where activations are quantized with a given scale to int8, which has no NaN, the row itself may
    be anything. Where they share one computed scale, the other rows may.

    Raises:
        ConformanceError: the NaN is lost, or has spread.
    """
    subject, check = subject_of(kernel), "check_nan_propagation"
    built = _built(subject, check, config)
    oracle = subject.oracle(config, built.tensors)
    clean = random_input(config, 5, seed=3)
    dirty = clean.clone()
    bad, column = 2, shape_of(config)[1] // 2
    dirty[bad, column] = float("nan")
    out = _apply(built, check, "M=5, a NaN in row 2", dirty.to(subject.device), None).cpu()
    shown = out[bad].isnan()
    silent = getattr(config, "is_static_input_scheme", False) and not oracle.weight_only
    if not silent and not shown.all():
        problem = (
            f"x[{bad}, {column}] is NaN, but {int((~shown).sum())} of {shown.numel()} results of "
            f"row {bad} are not"
        )
        raise subject.error(check, config, problem)
    if _rows_mix(config) and not oracle.weight_only:
        return Outcome()
    others = [row for row in range(len(clean)) if row != bad]
    compare(
        built,
        oracle,
        check,
        f"the rows beside row {bad}, which has a NaN",
        clean[others],
        None,
        out[others],
    )
    return Outcome()


@recorded
def check_batch_invariance(kernel: Kernel, config: MMLinearLayerConfig) -> Outcome:
    """A row's result has the same bits whatever the other rows are and however many there are.

    Checked only if the kernel's spec says so, and not for schemes in which all rows share one
    computed scale.

    Raises:
        ConformanceError: a row's result differs.
    """
    subject, check = subject_of(kernel), "check_batch_invariance"
    if not subject.declared.batch_invariant:
        return Outcome(not_run="the spec does not claim it")
    if _rows_mix(config):
        return Outcome(not_run="all rows share one computed scale")
    built = _built(subject, check, config)
    x = random_input(config, 33, seed=4).to(subject.device)
    whole = _apply(built, check, "M=33", x, None)
    for call, rows in (
        *((f"row {row} alone", [row]) for row in (0, 1, 17, 32)),
        ("the first two", [0, 1]),
        ("rows 5 to 20", list(range(5, 21))),
        ("all, in reverse", list(range(33))[::-1]),
    ):
        part = _apply(built, check, call, x[rows], None)
        differing = int((part != whole[rows]).sum())
        if differing:
            problem = f"{call}: {differing} of {part.numel()} results differ from those with M=33"
            raise subject.error(check, config, problem)
    return Outcome()
