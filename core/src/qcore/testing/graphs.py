"""Checks of what torch needs: `check_opcheck`, `check_compile`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from qcore.kernels.loading import process_weights
from qcore.layers.base import MMLinearLayerConfig
from qcore.testing.outcome import Outcome
from qcore.testing.record import recorded
from qcore.testing.results import compare
from qcore.testing.subject import Kernel, Subject, subject_of
from qcore.testing.tensors import make_layer, random_bias, random_input, random_tensors

__all__ = ["check_compile", "check_opcheck"]

_TORCHS_OWN = frozenset(
    (
        "_c10d_functional",
        "_inductor_test",
        "_quantized",
        "aten",
        "c10d",
        "c10d_functional",
        "debugprims",
        "fsdp",
        "higher_order",
        "inductor",
        "mkldnn",
        "mkldnn_prepacked",
        "onednn",
        "prim",
        "prims",
        "profiler",
        "quantized",
        "quantized_decomposed",
        "rngprims",
        "sparse",
        "static_runtime",
        "torchvision",
        "xnnpack",
    )
)

_DYNAMIC_BATCHES = (5, 9, 17, 6, 33, 12, 2, 40)


@dataclass(frozen=True)
class _OpCall:
    op: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


class _CustomOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the arguments of each call of an operator that is not torch's own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_OpCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace not in _TORCHS_OWN:
            self.calls.append(_OpCall(func, tree_map(_copy, args), tree_map(_copy, kwargs)))
        return func(*args, **kwargs)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


@recorded
def check_opcheck(kernel: Kernel, config: MMLinearLayerConfig) -> Outcome:
    """`torch.library.opcheck` on every custom operator that packing or running the layer calls.

    It checks an operator's schema (what it says it mutates), its fake implementation and its use
    under ``torch.compile`` with dynamic shapes. The operators are found by watching the calls, so
    the list cannot be out of date; kernels launched past the dispatcher are not seen.

    Raises:
        ConformanceError: an operator fails.
    """
    subject, check = subject_of(kernel), "check_opcheck"
    watch = _CustomOps()
    layer = make_layer(config, random_tensors(config), device=subject.device)
    bias = random_bias(config).to(subject.device)
    with subject.guarding(check, config, "packing and running the layer"), watch:
        instance = subject.kernel_class.from_config(config)
        process_weights(instance, layer)
        for M in (1, 5, 33):
            instance.apply_weights(layer, random_input(config, M).to(subject.device), bias)
    if not watch.calls:
        return Outcome(not_run="it calls no custom operator")
    for call in {(c.op, _form(c)): c for c in watch.calls}.values():
        with subject.guarding(check, config, f"opcheck of {call.op} on {_form(call)}"):
            torch.library.opcheck(call.op, tuple(call.args), dict(call.kwargs))
    return Outcome()


def _form(call: _OpCall) -> str:
    values = (*call.args, *call.kwargs.values())
    return ", ".join(
        f"{str(v.dtype).removeprefix('torch.')}{list(v.shape)}"
        if isinstance(v, torch.Tensor)
        else repr(v)
        for v in values
    )


@recorded
def check_compile(
    kernel: Kernel, config: MMLinearLayerConfig, *, backend: str = "eager"
) -> Outcome:
    """``torch.compile(fullgraph=True)`` with dynamic M gives right results.

    The kernel may be compiled anew where it branches on M, but not for every M.

    Args:
        kernel: the class, or a `Subject`.
        config: the layer.
        backend: of ``torch.compile``.

    Raises:
        ConformanceError: the graph breaks, a result is wrong, or every M is compiled by itself.
    """
    subject, check = subject_of(kernel), "check_compile"
    with subject.guarding(check, config, "building and packing the layer"):
        built = subject.build(config)
    compiled, count = _compile(built.apply, backend)
    oracle = subject.oracle(config, built.tensors)
    bias = random_bias(config).to(subject.device)
    for M in _DYNAMIC_BATCHES:
        x = random_input(config, M, seed=M).to(subject.device)
        with subject.guarding(check, config, f"the compiled kernel with M={M}"):
            out = compiled(x, bias)
        compare(built, oracle, check, f"compiled, M={M}", x, bias, out)
    if count() >= len(_DYNAMIC_BATCHES):
        raise _too_often(subject, config, count())
    return Outcome()


def _too_often(subject: Subject, config: MMLinearLayerConfig, count: int) -> Exception:
    problem = f"compiled {count} times for {len(_DYNAMIC_BATCHES)} numbers of rows"
    return subject.error("check_compile", config, problem)


def _compile(
    function: Callable[..., torch.Tensor], backend: str
) -> tuple[Callable[..., torch.Tensor], Callable[[], int]]:
    """``function`` compiled by itself, and how often it has been so far."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    return compiled, lambda: int(counter.frame_count)
