"""Small mixtures of experts, rounded expert by expert, as third parties' tools store them.

transformers keeps all experts of a layer in two parameters; every tool that quantizes takes them
apart into linear layers first, and names these as the original checkpoints do.
"""

from __future__ import annotations

import re

import checkpoint_writers as w
import torch

SIZES = {
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3MoeForCausalLM": {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
        "num_hidden_layers": 3,
    },
    "Qwen2MoeForCausalLM": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "shared_expert_intermediate_size": 64,
    },
}
NAMES = {"MixtralForCausalLM": ("w1", "w3", "w2")}  # gate, up, down; others as in a dense model


def tiny_mixture(name, **changes):
    return w.tiny_model(name, **{**SIZES[name], **changes})


def file_name(model, name):
    """As the original checkpoints of the architecture call it."""
    if type(model).__name__ == "MixtralForCausalLM":
        return re.sub(r"\.mlp\.", ".block_sparse_moe.", name)
    return name


def experts_modules(model):
    return [
        (n, m)
        for n, m in model.named_modules()
        if hasattr(m, "gate_up_proj")
        and hasattr(m, "down_proj")
        and not isinstance(m.down_proj, torch.nn.Module)
    ]


def expert_weights(model):
    """(name in the file, seed, a view of the weight [N, K]) of each expert's layers."""
    names = NAMES.get(type(model).__name__, ("gate_proj", "up_proj", "down_proj"))
    for at, (prefix, module) in enumerate(experts_modules(model)):
        for e in range(module.num_experts):
            gate, up = module.gate_up_proj[e].chunk(2)
            # Gate and up see the same inputs, so that tools put these in the same order.
            seeds = (100 * at + 2 * e, 100 * at + 2 * e, 100 * at + 2 * e + 1)
            for name, seed, view in zip(names, seeds, (gate, up, module.down_proj[e]), strict=True):
                yield file_name(model, f"{prefix}.{e}.{name}"), seed, view


def plain_state(model, tensors):
    """What is not in ``tensors`` and no expert, by the file's names."""
    experts = tuple(f"{prefix}." for prefix, _ in experts_modules(model))
    return {
        file_name(model, k): v.clone()
        for k, v in model.state_dict().items()
        if not k.startswith(experts) and file_name(model, k) not in tensors
    }


def plain_mixture(model):
    """The checkpoint's tensors where nothing is quantized."""
    tensors = {f"{name}.weight": view.clone() for name, _, view in expert_weights(model)}
    return {**tensors, **plain_state(model, tensors)}


def quantize_mixture(model, to_tensors, **how):
    """Round all linear layers and experts in place; returns the tensors of the checkpoint."""
    tensors, gone = {}, set()
    for i, (name, module) in enumerate(w.linears(model)):
        if name.endswith("shared_expert_gate"):
            continue
        rounded = w.quantize(module.weight, seed=1000 + i, **how)
        module.weight = torch.nn.Parameter(rounded.weight(), requires_grad=False)
        gone.add(f"{name}.weight")
        tensors |= {f"{file_name(model, name)}.{k}": v for k, v in to_tensors(rounded).items()}
    for name, seed, view in expert_weights(model):
        rounded = w.quantize(view, seed=seed, **how)
        view.copy_(rounded.weight())
        tensors |= {f"{name}.{k}": v for k, v in to_tensors(rounded).items()}
    rest = plain_state(model, tensors)
    return {**tensors, **{k: v for k, v in rest.items() if k not in gone}}
