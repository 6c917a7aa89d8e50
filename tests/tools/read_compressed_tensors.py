"""What compressed-tensors itself says that a folder means."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.offload.module import remove_module_offload
from rows import Made
from safetensors.torch import load_file

BY = "compressed-tensors' decompression in float32"
ROUNDED = f"{BY}, and its rounding of inputs"


def read(folder: Path) -> Made:
    """What compressed-tensors says that the files mean."""
    config = transformers.utils.quantization_config.CompressedTensorsConfig(run_compressed=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=config
    ).eval()
    stored = load_file(folder / "model.safetensors")
    weights, rounds, int8 = {}, False, False
    for name, module in model.named_modules():
        stated = getattr(module, "quantization_scheme", None)
        if stated is None or not isinstance(module, torch.nn.Linear):
            continue
        if f"{name}.weight_scale" not in stored:
            # Named by the config, and not quantized: compressed-tensors makes NaN of it.
            module.quantization_enabled = False
            remove_module_offload(module)
            module.weight = torch.nn.Parameter(stored[f"{name}.weight"].float(), False)
            continue
        weights[name] = module.weight.detach().float()
        if f"{name}.weight_global_scale" in stored:
            weights[name] = nvfp4(stored, name)
        # The module's holder of offloaded parameters keeps the dtype, which must be float32.
        remove_module_offload(module)
        module.weight = torch.nn.Parameter(weights[name], False)
        rounds |= stated.input_activations is not None
        int8 |= bool(stated.input_activations and stated.input_activations.type == "int")
    others = {n: p for n, p in model.named_parameters() if "proj" not in n}
    forward = model if rounds else None
    return Made(weights, ROUNDED if rounds else BY, forward, not int8, others)


def nvfp4(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """In float32; compressed-tensors' own code rounds the product to the model's dtype."""
    packed, scale = stored[f"{name}.weight_packed"], stored[f"{name}.weight_scale"].float()
    codes = unpack_fp4_from_uint8(packed, packed.shape[0], 2 * packed.shape[1], torch.float32)
    scale = scale / stored[f"{name}.weight_global_scale"]
    return codes * scale.repeat_interleave(16, dim=1)
