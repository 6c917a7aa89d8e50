"""`compile_decoding`: the steps of generation through ``torch.compile``, the prompt as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from typing import Any

import torch

from qcore.registry.discovery import get_registry

__all__ = ["compile_decoding"]

_INDUCTOR = {"size_asserts": False, "alignment_asserts": False}
"""What inductor checks of each weight in each step has not changed since it was compiled."""


def compile_decoding(model: Any, backend: str = "inductor") -> None:
    """Compile what a model does for one token after a cached context; ``generate`` then uses it,
    and `qcore.models.generate` best.

    On a CPU a step of a small model is mostly Python and small ops; compiled, it is mostly matrix
    products. The first step compiles, for a minute or more, and needs a C++ compiler. Later lengths
    use the same code, but in ``model.generate`` three more steps compile where a sliding window
    fills up. Prompts, several tokens at a time and calls without a cache run as before.

    Floats between ops are added in another order, and in a narrow dtype they are rounded less
    often; results differ by as much.

    Args:
        model: one of transformers, as `load_model` returns it. Its ``forward`` is replaced.
        backend: of ``torch.compile``.
    """
    from qcore.models.decoding import decoding_step

    forward: Callable[..., Any] = model.forward
    step = _compiled(forward, backend)

    # With its parameters: by them transformers sees that logits of the last token alone can be had.
    @wraps(forward)
    def run(*args: Any, **inputs: Any) -> Any:
        if args or not _is_step(inputs):
            return forward(*args, **inputs)
        mask = inputs.get("attention_mask")
        # Traced, a mask is applied even if it masks nothing, and keys are then repeated for it.
        if isinstance(mask, torch.Tensor) and mask.dim() == 2 and bool(mask.all()):
            inputs["attention_mask"] = None
        return step(**inputs)

    run.decoding_step = _compiled(partial(decoding_step, forward), backend)  # type: ignore[attr-defined]
    model.forward = run


def _compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """Of one graph for all lengths."""
    step: Callable[..., Any] = torch.compile(
        function,
        fullgraph=True,
        dynamic=True,
        backend=_after_passes(backend),
        # Nobody changes the modules of a loaded model; looking at each would take its time.
        options={"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe},
    )
    # An epsilon is the same for good; as a dynamic number it would become a tensor in each step.
    return torch._dynamo.config.patch(specialize_float=True)(step)  # type: ignore[no-any-return]


def _after_passes(backend: Any) -> Callable[..., Any]:
    """The backend, of a graph that the plugins' passes have changed."""
    compile_graph: Callable[..., Any] = torch._dynamo.lookup_backend(backend)
    if backend == "inductor":
        compile_graph = partial(compile_graph, config_patches=_INDUCTOR)

    def run(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        for entry in get_registry().decoding_passes():
            module, _, name = entry.partition(":")
            getattr(import_module(module), name)(graph)
        graph.recompile()
        return compile_graph(graph, inputs)

    return run


def _is_step(inputs: dict[str, Any]) -> bool:
    ids, cache = inputs.get("input_ids"), inputs.get("past_key_values")
    if not isinstance(ids, torch.Tensor) or ids.shape[-1] != 1 or cache is None:
        return False
    return int(cache.get_seq_length()) > 0
