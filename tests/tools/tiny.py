"""The model that every tool quantizes, a tiny Llama of random weights, and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

PROMPTS = (2, 48)


def config() -> transformers.LlamaConfig:
    """Two layers of 256; 512 inside, so that blocks of 128 and groups of 128 are more than one."""
    return transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def model(dtype: torch.dtype = torch.bfloat16) -> Any:
    """The same weights at each call, to bfloat16, in ``dtype``.

    Norms and some columns are far from their usual values, so that errors of scales show.
    """
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(config()).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
        elif "proj" in name:
            parameter.mul_(1 + 3 * (torch.rand(parameter.shape[1]) > 0.97))
            parameter.mul_(0.5 + torch.rand(parameter.shape[0], 1))
    for parameter in made.parameters():  # and no buffers: rotary frequencies are in float32
        parameter.data = parameter.data.to(torch.bfloat16).to(dtype)
    return made


def save(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """The unquantized checkpoint, with a tokenizer of numbers for tools that want one."""
    folder.mkdir(parents=True, exist_ok=True)
    model(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def saved(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The model as it is loaded from a folder; tools look there for what they copy."""
    save(folder, dtype)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def tokenizer() -> Any:
    """Words ``0`` to ``511``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({str(i): i for i in range(512)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="0", pad_token="2", eos_token="2", bos_token="1"
    )


def calibration(samples: int = 32, length: int = 48) -> torch.Tensor:
    """Tokens to calibrate with."""
    return torch.randint(3, 512, (samples, length), generator=torch.Generator().manual_seed(1))


def prompts() -> torch.Tensor:
    """Tokens to compare with; others than those of the calibration."""
    return torch.randint(3, 512, PROMPTS, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(of: Any) -> torch.Tensor:
    """float32 [2, 48, 512]."""
    out = of(prompts())
    return (out.logits if hasattr(out, "logits") else out[0]).float()


def linears(of: Any) -> dict[str, torch.nn.Module]:
    """The projections, by name."""
    return {n: m for n, m in of.named_modules() if n.endswith("_proj")}


def with_weights(
    weights: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """A float32 model: these weights by layer, these parameters, and the base's for the rest."""
    made = model(torch.float32)
    made.load_state_dict({name: value.float() for name, value in (others or {}).items()}, False)
    layers = dict(made.named_modules())
    for name, weight in weights.items():
        assert layers[name].weight.shape == weight.shape, name
        layers[name].weight = torch.nn.Parameter(weight.detach().float().clone(), False)
    return made


Rounding = Callable[[torch.Tensor], torch.Tensor]


def round_inputs(of: Any, rounding: Rounding | Mapping[str, Rounding]) -> Any:
    """Round the inputs of the projections (those named, or all of them)."""
    for name, module in linears(of).items():
        rule = rounding.get(name) if isinstance(rounding, Mapping) else rounding
        if rule is not None:
            module.register_forward_pre_hook(lambda _, args, rule=rule: (rule(args[0]),))
    return of


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Frobenius."""
    got, wanted = got.double(), wanted.double()
    return float((got - wanted).norm() / wanted.norm())


@torch.no_grad()
def worst_layer(loaded: Any, reference: Any) -> float:
    """The largest error of a projection, each given the input that it has in ``reference``."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = [
        module.register_forward_hook(
            # Hooks that round come first; the input is what the layer was called with.
            lambda _, args, out, name=name: seen.__setitem__(name, (args[0], out)),
        )
        for name, module in linears(reference).items()
    ]
    raw: dict[str, torch.Tensor] = {}
    handles += [
        module.register_forward_pre_hook(
            lambda _, args, name=name: raw.__setitem__(name, args[0].clone()), prepend=True
        )
        for name, module in linears(reference).items()
    ]
    logits(reference)
    for handle in handles:
        handle.remove()
    ours = linears(loaded)
    return max(
        relative_error(ours[name](raw[name].float()), out) for name, (_, out) in seen.items()
    )
