"""FP8, NVFP4, MXFP4, MXFP8 and W4A8 checkpoints that lie: the error says where."""

from __future__ import annotations

import checkpoint_writers as w
import float_writers as f
import pytest
import torch
from float_cases import FORMATS, LAYER, MX8
from qcore import errors
from qcore.models import load_model
from safetensors.torch import load_file, save_file

VALUE = "must be positive and finite"

LIES = {
    # name: (format, tensor, how it is changed, what the message says)
    "weight of another dtype": (
        "float channel",
        "weight",
        lambda t: t.float().to(torch.float8_e5m2),
        "float8_e5m2, needed is float8_e4m3fn",
    ),
    "e4m3fn where the config says e4m3fnuz": (
        "fnuz channel",
        "weight",
        lambda t: t.float().to(torch.float8_e4m3fn),
        "float8_e4m3fn, needed is float8_e4m3fnuz",
    ),
    "tensor scale where channels are said": (
        "float channel",
        "weight_scale",
        lambda t: t[:1].reshape(1),
        r"shape \[1\], needed is",
    ),
    "blocks of another size": (
        "fp8 block",
        "weight_scale_inv",
        lambda t: t[:, :1].repeat(1, 5),
        r"has shape \[3, 5\], needed is \[3, 2\]",
    ),
    "no input scale": ("fp8 static", "input_scale", None, "is missing"),
    "input scale of zero": ("fp8 static", "input_scale", torch.zeros_like, VALUE),
    "nvfp4 without its second scale": ("nvfp4", "weight_global_scale", None, "is missing"),
    "nvfp4 second scale of zero": ("nvfp4", "weight_global_scale", torch.zeros_like, VALUE),
    "nvfp4 block scales as bytes": (
        "modelopt nvfp4",
        "weight_scale",
        lambda t: t.view(torch.uint8),
        "uint8, needed is float8_e4m3fn",
    ),
    "nvfp4 input scale infinite": (
        "nvfp4, nvfp4",
        "input_global_scale",
        lambda t: t * float("inf"),
        VALUE,
    ),
    "mxfp4 scales of 16": (
        "mxfp4",
        "weight_scale",
        lambda t: t.repeat(1, 2),
        r"has shape \[96, 4\], needed is \[96, 2\]",
    ),
    "mxfp8 scales as floats": (
        "mxfp8",
        "weight_scale",
        lambda t: t.float(),
        "float32, needed is uint8 or float8_e8m0fnu",
    ),
    "int4 codes beyond 4 bits": ("int4 group, int8", "weight", lambda t: t * 16, "codes of 4 bits"),
}


@pytest.mark.parametrize("name", LIES)
def test_lie(tmp_path, name):
    fmt, suffix, change, text = LIES[name]
    to_layer, config, _ = FORMATS[fmt]
    model = w.tiny_model()
    folder = w.write_folder(tmp_path, model, f.quantize_model(model, to_layer), config)
    tensors = load_file(folder / "model.safetensors")
    old = tensors.pop(f"{LAYER}.{suffix}")
    if change is not None:
        tensors[f"{LAYER}.{suffix}"] = change(old).contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(errors.CheckpointError, match=text) as caught:
        load_model(folder, device="cpu")
    assert LAYER in str(caught.value)
    assert suffix in str(caught.value)


def test_fbgemms_bound_in_the_checkpoint(tmp_path):
    to_layer, config, _ = FORMATS["fbgemm_fp8"]
    model = w.tiny_model()
    tensors = f.quantize_model(model, to_layer)
    name = f"{LAYER}.input_scale_ub"
    for bound, fine in ((1.5, True), (2.0, False)):
        folder = tmp_path / str(bound)
        w.write_folder(folder, model, {**tensors, name: torch.tensor([bound])}, config)
        if fine:
            load_model(folder, device="cpu")
        else:
            with pytest.raises(errors.CheckpointError, match="input_scale_ub is 2, but the config"):
                load_model(folder, device="cpu")


def test_shapes_that_have_no_whole_blocks(tmp_path):
    model = w.tiny_model(intermediate_size=80)

    def to_layer(weight):
        scale = torch.zeros(weight.shape[0], weight.shape[1] // 32, dtype=torch.uint8)
        return {"weight": f.e4m3(weight), "weight_scale": scale}, weight

    tensors = f.quantize_model(model, to_layer)
    folder = w.write_folder(tmp_path, model, tensors, f.ct("mxfp8-quantized", MX8))
    with pytest.raises(errors.UnsupportedQuantizationError, match=r"down_proj: .*K=80 is no mult"):
        load_model(folder, device="cpu")
