"""Which layers of a model are rounded, to what, and which are kept and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qcore.errors import CheckpointError, ConfigError
from qcore.quantize.model_layers import LinearLayer, ModelLayers
from qcore.quantize.report import KeptLayer
from qcore.quantize.scheme import QuantizeScheme

__all__ = ["Choice", "choose_layers"]


@dataclass(frozen=True)
class Choice:
    """What is rounded, and what is not.

    Attributes:
        scheme: of all layers but the head.
        head_scheme: of the layer that makes the logits; None for not rounding it.
        layers: all that the model has.
        chosen: module name -> the layer and what it is rounded to.
        kept: what stays in float and why.
    """

    scheme: QuantizeScheme
    head_scheme: QuantizeScheme | None
    layers: ModelLayers
    chosen: dict[str, tuple[LinearLayer, QuantizeScheme]]
    kept: tuple[KeptLayer, ...]


def choose_layers(
    layers: ModelLayers,
    scheme: QuantizeScheme,
    head_scheme: QuantizeScheme | None,
    *,
    targets: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> Choice:
    """Decide for every layer.

    Args:
        layers: of the model.
        scheme: for all layers but the head.
        head_scheme: for the head; None to keep it.
        targets: the layers to round; none for all. Names of modules, or ``re:`` and a regular
            expression that fits the beginning of the name.
        ignore: layers to keep, in the same way.

    Raises:
        CheckpointError: nothing is left to round, or a head is asked for that is not there.
        ConfigError: a pattern cannot be read, or fits no layer.
    """
    wanted = [(layer, scheme) for layer in layers.linear]
    kept = [
        KeptLayer(name, "no linear layer of the model (an expert?)", asked_for=False)
        for name in layers.strangers
    ]
    if layers.head is not None and head_scheme is not None:
        wanted.append((layers.head, head_scheme))
    elif layers.head is not None and not layers.tied:
        kept.append(KeptLayer(layers.head.name, "the head was not asked for", asked_for=True))
    elif head_scheme is not None:
        raise CheckpointError("this model has no linear layer that makes the logits (lm_head)")
    names = [layer.name for layer, _ in wanted]
    targeted = _fitting("targets", targets, names)
    ignored = _fitting("ignore", ignore, names)
    chosen: dict[str, tuple[LinearLayer, QuantizeScheme]] = {}
    for layer, its_scheme in wanted:
        refusal = its_scheme.refusal(layer.weight.shape[1])
        if layer.name in ignored:
            reason = f"ignored ({ignored[layer.name]})"
            kept.append(KeptLayer(layer.name, reason, asked_for=True))
        elif targets and layer.name not in targeted and layer is not layers.head:
            kept.append(KeptLayer(layer.name, "not among the targets", asked_for=True))
        elif refusal is not None:
            kept.append(KeptLayer(layer.name, refusal, asked_for=False))
        else:
            chosen[layer.name] = (layer, its_scheme)
    if not chosen:
        raise CheckpointError(f"nothing is left to quantize: {kept[-1].name}: {kept[-1].reason}")
    return Choice(scheme, head_scheme, layers, chosen, tuple(kept))


def _fitting(argument: str, patterns: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """Of each name that a pattern fits, the pattern."""
    if isinstance(patterns, str):
        raise ConfigError(f"{argument} is the text {patterns!r}; it must be a list of names")
    tests = {text: _pattern(argument, text) for text in patterns}
    found: dict[str, str] = {}
    unused = dict.fromkeys(tests)
    for name in names:
        for text, fits in tests.items():
            if fits(name):
                found.setdefault(name, text)
                unused.pop(text, None)
    if unused:
        raise ConfigError(
            f"{argument}: {next(iter(unused))!r} fits no linear layer; they are called "
            f"{next(iter(names))!r} and the like"
        )
    return found


def _pattern(argument: str, text: str) -> Callable[[str], bool]:
    """What compressed-tensors means by an entry of ``targets`` or ``ignore``."""
    if not text.startswith("re:"):
        return lambda name: name == text
    try:
        compiled = re.compile(text.removeprefix("re:"))
    except re.error as error:
        raise ConfigError(f"{argument}: {text!r} is no regular expression: {error}") from None
    return lambda name: compiled.match(name) is not None
