from __future__ import annotations

import pytest
import torch
from qcore import errors
from qcore.quantization.auto_round import AutoRoundConfig
from qcore.quantization.awq import AWQScheme
from qcore.quantization.gptq import GPTQScheme

LINEAR = torch.nn.Linear(1, 1, device="meta")
UNSUPPORTED = errors.UnsupportedQuantizationError
MX = {"data_type": "mx_fp", "group_size": 32}
NV = {"data_type": "nv_fp", "group_size": 16}
FP = {"data_type": "fp", "bits": 8, "group_size": -1}
BASE = {"bits": 4, "group_size": 128, "sym": True, "data_type": "int"}


def read(**fields):
    return AutoRoundConfig.from_config({**BASE, **fields})


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("auto_round:auto_gptq", GPTQScheme(4, 128, True, False)),
        ("auto_round:auto_gptq:exllamav2", GPTQScheme(4, 128, True, False)),
        ("auto_round:gptqmodel", GPTQScheme(4, 128, True, False, v2=True)),
        ("auto_round", GPTQScheme(4, 128, True, False, v2=True)),
        ("auto_round:auto_awq", AWQScheme(128, zero_point=False)),
        (None, GPTQScheme(4, 128, True, False)),
    ],
)
def test_layouts(form, expected):
    assert read(packing_format=form).scheme == expected
    assert read(backend=form).scheme == expected


def test_layers():
    extra = {
        "model.layers.0.mlp.gate": {"bits": 16, "data_type": "float"},
        "lm_head": {"bits": 8, "group_size": 32},
        r".*experts\.\d+\.up": {"sym": False},
    }
    config = read(block_name_to_quantize="model.layers, model.more", extra_config=extra)

    def scheme(name):
        return config.get_quant_method(LINEAR, name)

    assert scheme("model.layers.0.mlp.gate") is None
    assert scheme("lm_head") == scheme("language.lm_head") == GPTQScheme(8, 32, True, False)
    assert scheme("visual.experts.3.up") == GPTQScheme(4, 128, False, False)
    assert scheme("model.layers.1.mlp.up") is scheme("model.more.x") is config.scheme
    assert scheme("model.layersx.1") is scheme("visual.0") is None
    assert read(block_name_to_quantize=["a"]).get_quant_method(LINEAR, "a.b") is not None
    assert read().get_quant_method(LINEAR, "anything") is not None
    assert config.get_quant_method(torch.nn.Embedding(1, 1), "model.layers.x") is None


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"packing_format": "auto_round:fp8"}, UNSUPPORTED, "packing_format 'auto_round:fp8'"),
        ({"packing_format": "marlin"}, UNSUPPORTED, "packing_format 'marlin'.*llm_compressor"),
        ({"packing_format": 3}, errors.CheckpointError, "packing_format is 3"),
        ({"packing_format": "auto_round:auto_awq", "bits": 8}, UNSUPPORTED, "bits is 8.*4, with"),
        ({"data_type": "fp4_v2"}, UNSUPPORTED, "data_type is 'fp4_v2'.*nv_fp, mx_fp, fp"),
        ({"data_type": "mx_fp"}, UNSUPPORTED, "group_size is 128.*32"),
        ({"data_type": "mx_fp", "bits": 6}, UNSUPPORTED, "bits is 6.*4, 8"),
        ({**MX, "act_bits": 4, "bits": 8}, UNSUPPORTED, "act_bits is 4.*8, 16"),
        ({**MX, "act_bits": 8, "act_dynamic": False}, UNSUPPORTED, "act_dynamic is False"),
        ({**MX, "sym": False}, UNSUPPORTED, "sym is False.*true, with mx_fp"),
        ({**NV, "act_bits": 4, "act_data_type": "fp"}, UNSUPPORTED, "act_data_type is 'fp'"),
        ({**NV, "group_size": 32}, UNSUPPORTED, "group_size is 32.*16"),
        ({**FP, "group_size": [128]}, errors.CheckpointError, "group_size is .*two positive"),
        ({**FP, "group_size": 64}, UNSUPPORTED, "group_size is 64.*channel"),
        ({**FP, "act_bits": 8, "act_group_size": 128}, UNSUPPORTED, "act_group_size is 128.*-1"),
        ({"act_bits": 8}, UNSUPPORTED, "act_bits is 8"),
        ({"bits": 5}, UNSUPPORTED, "bits is 5"),
        ({"bits": 16}, UNSUPPORTED, "bits is 16"),
        ({"group_size": [128, 128]}, errors.CheckpointError, "group_size is"),
        ({"extra_config": {"a": 1}}, errors.CheckpointError, "extra_config: a is 1"),
        ({"extra_config": {"(a": {}}}, errors.CheckpointError, "no regular expression"),
        ({"block_name_to_quantize": [1]}, errors.CheckpointError, "names of blocks"),
    ],
)
def test_bad_config(change, error, text):
    with pytest.raises(error, match=text) as caught:
        read(**change)
    assert type(caught.value) is error
