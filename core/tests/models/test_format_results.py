"""What `--format-results` keeps of a test."""

import json

import format_results
from qcore.models import load_model


def test_a_row(gptq_folder, tmp_path):
    folder, _ = gptq_folder
    results = format_results.FormatResults()
    results.add("b", folder, load_model(folder, device="cpu"), 1e-7, 1e-5)
    results.add("a", folder, load_model(folder, device="cpu"), 0.0, 1e-5, tool="torch")
    results.write(tmp_path / "results.json")
    kept = json.loads((tmp_path / "results.json").read_text())
    first, second = kept["rows"]
    assert (first["test"], first["tool"], first["version"]) == (
        "a",
        "torch",
        kept["environment"]["torch"],
    )
    assert second["tool"] is second["version"] is second["layer_error"] is None
    assert (second["format"], second["schemes"]) == ("gptq", ["GPTQ 4 bit g32 symmetric"])
    assert (second["error"], second["bound"]) == (1e-7, 1e-5)
    # All layers are one scheme: their sizes and dtypes are the model's.
    assert second["layers"] == [
        {
            "class": "MPLinearLayerConfig",
            "weight_type": {"class": "ScalarType", "name": "uint4b8"},
            "group_size": 32,
            "zero_points": False,
            "has_g_idx": False,
        }
    ]


def test_formats_are_named_by_their_configs(tmp_path):
    def named(**config):
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
        return format_results.format_of(tmp_path)

    assert named(quant_method="gptq", checkpoint_format="gptq_v2") == ("gptq", "gptq_v2")
    assert named(quant_method="awq", bits=4) == ("awq", None)
    assert named(quant_method="bitsandbytes", load_in_8bit=True, bnb_4bit_quant_type="nf4") == (
        "bitsandbytes",
        "int8",
    )
    assert named(quant_method="torchao", quant_type={"default": {"_type": "X"}}) == ("torchao", "X")
    assert format_results.format_of(tmp_path / "model.gguf") == ("gguf", None)
