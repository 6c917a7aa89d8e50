"""`calibrate`: let text through a float model and say what range each layer's input has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from qcore.errors import CheckpointError, ConfigError, MissingDependencyError, WeightError
from qcore.quantize.activation_scales import ActivationScales
from qcore.quantize.observers import InputHistogram, check_observer, observed_range
from qcore.quantize.scheme import QuantizeScheme

__all__ = ["calibrate"]

Progress = Callable[[int, int, str], None]


def calibrate(
    model: Any,
    data: str | Iterable[str] | torch.Tensor | Iterable[Sequence[int]],
    *,
    scheme: str | QuantizeScheme,
    observer: str = "minmax",
    percentile: float = 99.9,
    sequence_length: int = 512,
    max_sequences: int | None = 128,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> ActivationScales:
    """Find the scales of activations.

    The model runs in float. Of each layer's input a histogram is kept, whose size does not depend
    on the text (`qcore.quantize.observers`). Text is cut into sequences that do not overlap.

    Args:
        model: a float model of transformers, or the folder of one, which is loaded.
        data: a text, several texts, token numbers [sequences, tokens], or lists of token numbers.
        scheme: that the scales are for: ``int8-static``, ``int8-static-asym``, ``fp8-static`` or
            ``nvfp4``.
        observer: ``minmax``, ``percentile`` or ``mse``.
        percentile: in percent, of the observer ``percentile``.
        sequence_length: tokens that the model sees at a time.
        max_sequences: stop after so many; None for all.
        tokenizer: for texts; None for the one in the model's folder.
        progress: called after each sequence with the sequences done, all, and a text.

    Returns:
        For `quantize_checkpoint` and ``load_model(quantize=...)``, as ``scales=``.

    Raises:
        CheckpointError: the model or its tokenizer cannot be loaded, or is quantized already.
        ConfigError: an argument cannot be used; the message names it.
        WeightError: the model computes NaN or infinity.
        MissingDependencyError: transformers is not installed.
    """
    wanted = QuantizeScheme.parse(scheme)
    check_observer(observer, wanted, percentile)
    _check_counts(sequence_length, max_sequences)
    folder = Path(model) if isinstance(model, (str, os.PathLike)) else None
    if folder is not None:
        from qcore.models.load import load_model
        from qcore.quantize.source import open_float_checkpoint

        open_float_checkpoint(folder)
        sequences = _sequences(data, tokenizer, folder, sequence_length, max_sequences)
        model = load_model(folder)
    else:
        sequences = _sequences(data, tokenizer, None, sequence_length, max_sequences)
    limit = getattr(getattr(model, "config", None), "vocab_size", None)
    highest = max(int(sequence.max()) for sequence in sequences)
    if isinstance(limit, int) and highest >= limit:
        raise ConfigError(f"data: token {highest} is beyond the model's vocabulary of {limit}")
    histograms = _observe(model, sequences, progress)
    ranges = {
        name: observed_range(histogram, observer, wanted, percentile)
        for name, histogram in histograms.items()
        if histogram.count
    }
    return ActivationScales(str(wanted), observer, ranges)


def _check_counts(sequence_length: int, max_sequences: int | None) -> None:
    for name, value in (("sequence_length", sequence_length), ("max_sequences", max_sequences)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")


# -- the text ----------------------------------------------------------------------------------


def _sequences(
    data: Any, tokenizer: Any, folder: Path | None, length: int, limit: int | None
) -> list[torch.Tensor]:
    """Token numbers, int64 [1, tokens] each."""
    if isinstance(data, torch.Tensor):
        rows: Iterable[Any] = data if data.dim() > 1 else [data]
    elif isinstance(data, str):
        rows = [data]
    else:
        rows = data
    found: list[torch.Tensor] = []
    for row in rows:
        if isinstance(row, str):
            if tokenizer is None:
                tokenizer = _load_tokenizer(folder)
            row = tokenizer(row)["input_ids"]
        tokens = torch.as_tensor(row)
        if tokens.dim() != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise ConfigError("data: it must be texts, or token numbers in one or two dimensions")
        if tokens.numel() and int(tokens.min()) < 0:
            raise ConfigError(f"data: token {int(tokens.min())} is negative")
        found += [tokens[None, i : i + length].long() for i in range(0, len(tokens), length)]
        if limit is not None and len(found) >= limit:
            return found[:limit]
    if not found:
        raise ConfigError("data: there are no tokens in it")
    return found


def _load_tokenizer(folder: Path | None) -> Any:
    if folder is None:
        raise ConfigError("data is text, and the model comes without its folder: give tokenizer=")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingDependencyError(
            "calibrating needs transformers: pip install qcore[models]"
        ) from None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers are files of many kinds, each fails in its own way
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded: {error}") from error


# -- the model ---------------------------------------------------------------------------------


def _observe(
    model: Any, sequences: list[torch.Tensor], progress: Progress | None
) -> dict[str, InputHistogram]:
    """Run the model; a histogram of the input of every linear layer, by its name."""
    layers = {n: m for n, m in model.named_modules() if type(m) is torch.nn.Linear}
    if not layers:
        raise ConfigError("model: it has no float linear layer, so there is nothing to calibrate")
    histograms = {name: InputHistogram() for name in layers}

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
        def hook(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            try:
                histograms[name].add(inputs[0])
            except WeightError as error:
                raise WeightError(f"{name}: {error}") from None

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            for done, sequence in enumerate(sequences, 1):
                model(input_ids=sequence.to(device), use_cache=False)
                if progress is not None:
                    progress(done, len(sequences), "calibrating")
    finally:
        for handle in handles:
            handle.remove()
    return histograms
