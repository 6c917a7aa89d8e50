from __future__ import annotations

import json

import checkpoint_writers as w
import qcore
from qcore.models import explain, inspect_checkpoint, load_model
from safetensors.torch import load_file


def test_table_groups_layers_that_are_alike(gptq_folder):
    explanation = explain(load_model(gptq_folder[0], device="cpu"))
    lines = str(explanation).splitlines()
    assert lines[0].split()[:2] == ["layer", "K"]
    assert len(lines) == 1 + 7
    assert any(line.startswith("model.layers.*.mlp.down_proj x2  ") for line in lines)
    assert {line.index("Reference") for line in lines[1:]} == {lines[0].index("kernel")}
    assert len(explanation.render(per_layer=True).splitlines()) == 1 + 14
    assert len(explanation.rows) == 14
    row = explanation.rows[0]
    assert row.layer == "model.layers.0.self_attn.q_proj"
    assert row.kernel == row.decision.kernel_name
    assert row.reason == row.decision.reason
    data = json.loads(json.dumps(explanation.to_dict()))
    assert data["layers"][0]["layer"] == row.layer
    assert data["layers"][0]["candidates"]


def test_layers_that_differ_have_lines_of_their_own(tmp_path):
    model = w.tiny_model()
    rules = {r".*layers\.1\.mlp\.down_proj": {"group_size": 16}}
    tensors = w.quantize_model(model, w.gptq_tensors)
    name = "model.layers.1.mlp.down_proj"
    r = w.quantize(model.get_submodule(name).weight, group=16)
    tensors.update({f"{name}.{k}": v for k, v in w.gptq_tensors(r).items()})
    folder = w.write_folder(tmp_path, model, tensors, w.gptq_config(dynamic=rules))
    text = str(explain(load_model(folder, device="cpu")))
    assert text.count("model.layers.*.mlp.down_proj ") == 2
    assert "g16" in text


def test_report(gptq_folder):
    folder, _ = gptq_folder
    report = inspect_checkpoint(folder, target="cuda:sm_90")
    tensors = load_file(folder / "model.safetensors")
    sizes = {k: t.numel() * t.element_size() for k, t in tensors.items()}
    quantized = sum(
        n for k, n in sizes.items() if k.endswith(("qweight", "qzeros", "scales", "g_idx"))
    )
    assert report.quantized_bytes == quantized
    assert report.other_bytes == sum(sizes.values()) - quantized
    assert report.tensors == len(tensors)
    assert (report.method, report.architecture) == ("gptq", "LlamaForCausalLM")
    assert len(report.layers) == 14
    assert {str(layer.decision.target) for layer in report.layers} == {"cuda:sm_90"}
    layer = next(row for row in report.layers if row.layer == "model.layers.0.mlp.down_proj")
    assert (layer.K, layer.N, layer.scheme) == (96, 64, "GPTQ 4 bit g32 symmetric")
    text = str(report)
    for part in ("LlamaForCausalLM", "GPTQ 4 bit g32 symmetric", "cuda:sm_90", "down_proj x2"):
        assert part in text
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["decision"]["kernel"]


def test_report_and_model_agree(gptq_folder):
    report = inspect_checkpoint(gptq_folder[0], target="cpu")
    rows = explain(load_model(gptq_folder[0], device="cpu", target="cpu")).rows
    expected = {row.layer: (row.decision.config, row.kernel) for row in rows}
    got = {x.layer: (x.decision.config, x.decision.kernel_name) for x in report.layers}
    assert got == expected


def test_report_of_an_unquantized_checkpoint(tmp_path):
    model = w.tiny_model()
    report = inspect_checkpoint(w.write_folder(tmp_path, model, model.state_dict()))
    assert (report.method, report.layers, report.quantized_bytes) == (None, (), 0)
    assert "quantization:  none" in report.render()


def test_report_in_strict_mode_shows_what_cannot_run(gptq_folder):
    settings = qcore.Settings(linear_backend="emulation", strict=True)
    report = inspect_checkpoint(gptq_folder[0], settings=settings)
    assert {layer.decision.kernel_name for layer in report.layers} == {None}
    assert "none" in report.render()
