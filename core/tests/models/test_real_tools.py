"""What the tools themselves write, where they are installed: their files, against their own values.

None of them is needed for anything else; each test is skipped where its tool is missing.
"""

from __future__ import annotations

import json

import checkpoint_writers as w
import pytest
import torch
from qcore.models import explain, load_model

CLOSE = 1e-5


def replace_linears(model, make):
    """Let a tool quantize each layer; the model then holds the values that the tool says.

    ``make`` takes a linear layer and returns a module and the weight that it stands for.
    """
    tensors, gone = {}, set()
    for name, module in w.linears(model):
        made, weight = make(module)
        tensors.update({f"{name}.{k}": v for k, v in made.items() if v is not None})
        module.weight = torch.nn.Parameter(weight.detach().float(), requires_grad=False)
        gone.add(f"{name}.weight")
    kept = {k: v for k, v in model.state_dict().items() if k not in {*gone, *tensors}}
    return {k: v.detach().clone() for k, v in {**tensors, **kept}.items()}


@pytest.fixture
def check(format_result):
    def compare(folder, model, kernel_type, tool, count=14):
        loaded = load_model(folder, device="cpu")
        error = w.relative_error(w.logits(loaded), w.logits(model))
        assert error < CLOSE
        rows = explain(loaded).rows
        assert [row.decision.config.kernel_type for row in rows] == [kernel_type] * count
        format_result(folder, loaded, error, CLOSE, tool=tool)

    return compare


def copy_of(module):
    """The tools empty or replace the layer that they are given."""
    N, K = module.weight.shape
    layer = torch.nn.Linear(K, N, bias=False).requires_grad_(False)
    layer.weight.copy_(module.weight)
    return layer


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_of_4_bits(tmp_path, kind, double, check):
    bnb = pytest.importorskip("bitsandbytes")
    transformers = pytest.importorskip("transformers")

    def make(module):
        N, K = module.weight.shape
        layer = bnb.nn.Linear4bit(K, N, bias=False, quant_type=kind, compress_statistics=double)
        layer.load_state_dict({"weight": module.weight})
        layer = layer.to("cpu")
        value = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return layer.state_dict(), value

    # Whole blocks in a row, as bitsandbytes' own code for CPUs needs; what it quantizes otherwise
    # is right, but not what that code makes of it.
    model = w.tiny_model(intermediate_size=128)
    tensors = replace_linears(model, make)
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double
    )
    check(
        w.write_folder(tmp_path, model, tensors, config.to_dict()),
        model,
        "codebook",
        "bitsandbytes",
    )


def test_llm_int8(tmp_path, check):
    bnb = pytest.importorskip("bitsandbytes")
    transformers = pytest.importorskip("transformers")

    def make(module):
        N, K = module.weight.shape
        layer = bnb.nn.Linear8bitLt(K, N, bias=False, has_fp16_weights=False)
        layer.load_state_dict({"weight": module.weight}, strict=False)
        layer = layer.to("cpu")
        value = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
        return layer.state_dict(), value

    model = w.tiny_model()
    tensors = replace_linears(model, make)
    config = transformers.BitsAndBytesConfig(load_in_8bit=True).to_dict()
    check(w.write_folder(tmp_path, model, tensors, config), model, "mp", "bitsandbytes")


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_hqq(tmp_path, bits, check):
    hqq = pytest.importorskip("hqq.core.quantize")
    stated = hqq.BaseQuantizeConfig(nbits=bits, group_size=32, axis=1)

    def make(module):
        layer = hqq.HQQLinear(copy_of(module), stated, compute_dtype=torch.float32, device="cpu")
        return layer.state_dict(), layer.dequantize()

    model = w.tiny_model()
    tensors = replace_linears(model, make)
    config = {"quant_config": stated, "quant_method": "hqq", "skip_modules": ["lm_head"]}
    config = json.loads(json.dumps(config))
    check(w.write_folder(tmp_path, model, tensors, config), model, "codebook", "hqq")


AO = {
    "Int8WeightOnlyConfig": ({}, "mp"),
    "Float8WeightOnlyConfig": ({}, "fp8"),
    "IntxWeightOnlyConfig": ({"weight_dtype": torch.int4, "group": 32}, "mp"),
    "IntxWeightOnlyConfig asymmetric": ({"weight_dtype": torch.int3, "group": 16}, "mp"),
}


@pytest.mark.parametrize("name", AO)
def test_torchao(tmp_path, name, check):
    ao = pytest.importorskip("torchao.quantization")
    from torchao.core.config import config_to_dict
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    how, kernel_type = AO[name]
    how = dict(how)
    if "group" in how:
        how["granularity"] = ao.granularity.PerGroup(how.pop("group"))
    if "asymmetric" in name:
        how["mapping_type"] = ao.MappingType.ASYMMETRIC
    stated = getattr(ao, name.split()[0])(**how)

    def make(module):
        layer = copy_of(module)
        ao.quantize_(layer, stated)
        held = {f"x.{k}": v for k, v in layer.state_dict().items()}
        flat = flatten_tensor_state_dict(held)[0]
        return {k[2:]: v for k, v in flat.items()}, layer.weight.dequantize()

    model = w.tiny_model()
    tensors = replace_linears(model, make)
    config = {"quant_method": "torchao", "quant_type": {"default": config_to_dict(stated)}}
    check(w.write_folder(tmp_path, model, tensors, config), model, kernel_type, "torchao")


@pytest.mark.parametrize(
    ("kind", "kernel_type"),
    [("qint8", "mp"), ("qint4", "codebook"), ("qint2", "codebook"), ("qfloat8", "fp8")],
)
def test_quanto(tmp_path, kind, kernel_type, check):
    quanto = pytest.importorskip("optimum.quanto")
    names = {}

    def make(module):
        holder = torch.nn.Sequential(copy_of(module))
        quanto.quantize(holder, weights=getattr(quanto, kind))
        quanto.freeze(holder)
        names.update(quanto.quantization_map(holder))
        state = {k[2:]: v for k, v in holder.state_dict().items()}
        return state, holder[0].weight.dequantize()

    model = w.tiny_model(hidden_size=256, head_dim=64, intermediate_size=320)
    tensors = replace_linears(model, make)
    folder = w.write_folder(tmp_path, model, tensors)
    qmap = {name: names["0"] for name, _ in w.linears(model)}
    (folder / "quanto_qmap.json").write_text(json.dumps(qmap))
    check(folder, model, kernel_type, "optimum-quanto")
