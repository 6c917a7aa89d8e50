import json

import pytest
import torch
from qcore.cli.layer_options import DESCRIBED, LayerOptions
from qcore.facts.quant_key import kFp8StaticTensorSym, kMxfp8Dynamic
from qcore.layers import Fp8BlockScaledMMLinearLayerConfig


def config(type="mp", shape="4096x11008", dtype="bfloat16", **options):
    return LayerOptions(type=type, shape=shape, dtype=dtype, **options).config()


def test_every_type_that_options_describe_is_named(cli):
    """In the help, which is written by hand so that it needs no import of torch."""
    helped, refused = cli("explain", "--help"), cli("explain")
    for name in DESCRIBED:
        assert name in helped.out, name
        assert name in refused.err, name
        assert config(name).kernel_type == name


def test_the_shape_is_inputs_by_outputs():
    assert config().partition_weight_shape == (4096, 11008)
    assert config("int8").weight_shape == (11008, 4096)


def test_mp():
    assert str(config().weight_type) == "uint4b8"
    assert config().group_size == 128
    assert str(config(zero_points=True).weight_type) == "uint4"
    made = config(weight_type="uint8b128", group_size=-1, g_idx=True, dtype="fp16")
    assert (made.group_size, made.has_g_idx, made.act_type) == (-1, True, torch.float16)


def test_int8():
    made = config("int8")
    assert (made.is_static_input_scheme, made.is_channelwise, made.input_symmetric) == (
        False,
        True,
        True,
    )
    made = config("int8", static=True, tensor=True, asymmetric=True)
    assert (made.is_static_input_scheme, made.is_channelwise, made.input_symmetric) == (
        True,
        False,
        False,
    )


@pytest.mark.parametrize("weights", ["channel", "tensor"])
@pytest.mark.parametrize("activations", ["token", "tensor", "static-tensor", "none"])
def test_fp8(weights, activations):
    made = config("fp8", weights=weights, activations=activations)
    assert made.weight_quant_key.scale.group_shape.is_per_tensor() == (weights == "tensor")
    assert (made.activation_quant_key is None) == (activations == "none")
    if activations == "static-tensor":
        assert made.activation_quant_key == kFp8StaticTensorSym


def test_fp8_by_block():
    for made in (config("fp8", weights="block"), config("fp8_block")):
        assert isinstance(made, Fp8BlockScaledMMLinearLayerConfig)
        assert made.weight_block == (128, 128)
        assert made.activation_quant_key.scale.group_shape == (1, 128)
    assert config("fp8_block", activations="none").activation_quant_key is None


def test_block_formats():
    assert config("nvfp4").activation_quant_key is not None
    assert config("nvfp4", activations="none").activation_quant_key is None
    assert config("mxfp4").activation_quant_key is None
    assert config("mxfp4", activations="mxfp8").activation_quant_key == kMxfp8Dynamic
    assert config("mxfp8").activation_quant_key == kMxfp8Dynamic


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a CHECKPOINT, or describe a layer"),
        (("--shape", "4x4"), "give a CHECKPOINT, or describe a layer"),
        (("--type", "mpp"), "nearest: mp"),
        (("--type", "mp", "--shape", "4096"), "is not KxN"),
        (("--type", "mp", "--dtype", "float8"), "allowed: bfloat16, float16, float32"),
        (("--type", "mp", "--weight-type", "uint4b9"), "nearest: uint4b8"),
        (("--type", "int8", "--g-idx"), "only about mp"),
        (("--type", "mp", "--static"), "only about int8"),
        (("--type", "fp8", "--activations", "tokens"), "nearest: token"),
        (("--type", "fp8_block", "--weights", "channel"), "others are --type fp8"),
        (("somewhere", "--type", "mp"), "a checkpoint says what its layers are"),
        (("somewhere", "--g-idx"), "--g-idx describes another"),
    ],
)
def test_options_that_make_no_sense(cli, arguments, message):
    result = cli("explain", *arguments)
    assert result.code == 2
    assert message in " ".join(result.err.split())


def test_the_whole_decision_is_printed(cli):
    from qcore.selection import select

    result = cli("explain", "--type", "mp", "--shape", "4096x11008")
    assert result.code == 0
    assert result.out.rstrip() == select(config()).render()


def test_a_target_and_json(cli):
    result = cli("explain", "--type", "int8", "--target", "cuda:sm_100", "--all", "--json")
    found = json.loads(result.out)
    assert found["target"] == "cuda:sm_100"
    assert found["kernel"] == "ReferenceInt8ScaledMMLinearKernel"
    assert all(candidate["tried"] for candidate in found["candidates"])


def test_no_kernel_is_status_1_with_the_reasons_on_stdout(cli, monkeypatch):
    monkeypatch.setenv("QCORE_DISABLED_KERNELS", "ReferenceMPLinearKernel")
    monkeypatch.setenv("QCORE_DISABLED_PLUGINS", "cpu,cuda,rocm,xpu,flashinfer")
    result = cli("explain", "--type", "mp", "--target", "xpu")
    assert result.code == 1
    assert "named in QCORE_DISABLED_KERNELS" in result.out
    assert result.err == ""


def test_a_checkpoint(cli, checkpoint):
    result = cli("explain", checkpoint)
    assert result.code == 0
    assert "2 x model.layers.*.mlp.down_proj" in result.out
    assert result.out.count("layer: ") == result.out.count("kernel: ")
    assert "K=96 N=64" in result.out
    found = json.loads(cli("explain", checkpoint, "--target", "cuda:sm_90", "--json").out)
    assert sum(len(kind["layers"]) for kind in found) == 14
    assert found[0]["target"] == "cuda:sm_90"


def test_a_checkpoint_without_quantization(cli, float_checkpoint):
    result = cli("explain", float_checkpoint)
    assert result.code == 0
    assert "no layer is quantized" in result.out


def test_experts_cannot_be_described_by_options(cli):
    done = cli("explain", "--type", "moe_wna16", "--shape", "64x64")
    assert done.code == 2
    assert "cannot be described by" in done.out + done.err
