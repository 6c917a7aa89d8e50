"""Checkpoints whose layers are several layers in one, with scales for each."""

from __future__ import annotations

import checkpoint_writers as w
import float_writers as f
import pytest
import torch
from qcore import errors
from qcore.models import inspect_checkpoint, load_model
from safetensors.torch import load_file, save_file

CLOSE = 1e-5


@pytest.mark.parametrize("scales", [[0.004, 0.02], [[0.004], [0.02]]])
def test_gate_and_up_in_one_int8_layer(tmp_path, scales):
    """A tensor scale for each half of the rows."""
    model = w.tiny_model("Phi3ForCausalLM")
    tensors = {}
    for name, module in w.linears(model):
        fused = "gate_up" in name
        scale = torch.tensor(scales if fused else [0.004])
        wide = scale.reshape(-1).repeat_interleave(module.out_features // scale.numel())
        codes = (module.weight / wide[:, None]).round().clamp(-127, 127)
        module.weight = torch.nn.Parameter(codes * wide[:, None], requires_grad=False)
        tensors |= {f"{name}.weight": codes.to(torch.int8), f"{name}.weight_scale": scale}
        module.register_forward_pre_hook(lambda _, args: (f.round_int8(args[0]),))
    kept = {k: v.clone() for k, v in model.state_dict().items() if k not in tensors}
    inputs = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    weights = {"num_bits": 8, "strategy": "tensor", "group_size": None}
    config = w.ct_config("int-quantized", weights, {**inputs, "symmetric": True})
    folder = w.write_folder(tmp_path, model, {**tensors, **kept}, config)
    loaded = load_model(folder, device="cpu")
    name = "model.layers.1.mlp.gate_up_proj"
    x = torch.randn(5, 64)
    got = loaded.get_submodule(name)(x)
    assert w.relative_error(got, model.get_submodule(name)(x)) < CLOSE
    schemes = {row.layer: row.scheme for row in inspect_checkpoint(folder).layers}
    assert schemes[name] == "W8A8 half weights, dynamic symmetric activations"
    # Widths of q, k and v are not said by anything, so that three scales are refused.
    file = folder / "model.safetensors"
    stored = load_file(file)
    stored["model.layers.0.self_attn.qkv_proj.weight_scale"] = torch.full((3,), 0.004)
    save_file(stored, file)
    with pytest.raises(errors.CheckpointError, match=r"qkv_proj.weight_scale has shape \[3\]"):
        load_model(folder, device="cpu")
