"""How a checkpoint is loaded: shards, progress, memory, failures half way, dtypes, threads."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import weakref

import checkpoint_writers as w
import pytest
import torch
from qcore import errors
from qcore.models import explain, load_model
from qcore.models import load as load_module
from qcore.quantization import QuantizedLinear
from safetensors.torch import load_file, save_file

CLOSE = 1e-5  # float32 rounding of another order of summation


def test_sharded_is_the_same_as_single(gptq_folder, tmp_path):
    folder, _ = gptq_folder
    expected = w.logits(load_model(folder, device="cpu"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i in range(3):
        part = names[i::3]
        save_file({n: tensors[n] for n in part}, folder / f"part-{i}.safetensors")
        weight_map.update(dict.fromkeys(part, f"part-{i}.safetensors"))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(w.logits(load_model(folder, device="cpu")), expected)


def test_twice_gives_the_same_bits(gptq_folder):
    one, two = (load_model(gptq_folder[0], device="cpu") for _ in range(2))
    for (name, a), (other, b) in zip(
        one.state_dict().items(), two.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b), name


def test_config_in_a_file_of_its_own(gptq_folder):
    folder, model = gptq_folder
    config = json.loads((folder / "config.json").read_text())
    quantization = config.pop("quantization_config")
    del quantization["quant_method"]  # as AutoGPTQ first wrote it
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps(quantization))
    loaded = load_model(folder, device="cpu")
    assert w.relative_error(w.logits(loaded), w.logits(model)) < CLOSE


def test_progress_names_every_step(gptq_folder):
    seen = []
    load_model(gptq_folder[0], device="cpu", progress=lambda *step: seen.append(step))
    total = len(seen)
    assert [step[:2] for step in seen] == [(i + 1, total) for i in range(total)]
    assert len({name for *_, name in seen}) == total == 14 + 7


def test_checkpoint_tensors_are_freed_layer_by_layer(gptq_folder, monkeypatch):
    alive, most = weakref.WeakSet(), 0
    read = load_module.read_tensor

    def counting(info):
        nonlocal most
        tensor = read(info)
        if info.name.endswith(("qweight", "qzeros", "scales", "g_idx")):
            alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    class Counting(QuantizedLinear):
        def __init__(self, *args, **kwargs):
            assert len(alive) == 0, "kernels pack when the checkpoint's tensors are gone"
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(load_module, "read_tensor", counting)
    monkeypatch.setattr(load_module, "QuantizedLinear", Counting)
    load_model(gptq_folder[0], device="cpu")
    assert most == 4
    gc.collect()
    assert len(alive) == 0


def test_a_failure_half_way_keeps_nothing(gptq_folder, monkeypatch):
    made = []
    build = load_module.build_skeleton

    def remember(*args):
        model = build(*args)
        made.append(weakref.ref(model))
        return model

    def fail_late(done, total, name):
        if done == total - 3:
            raise RuntimeError("stop")

    monkeypatch.setattr(load_module, "build_skeleton", remember)
    with pytest.raises(RuntimeError, match="stop"):
        load_model(gptq_folder[0], device="cpu", progress=fail_late)
    gc.collect()
    assert made[0]() is None
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("stated", "asked", "expected"),
    [
        ("float32", None, torch.float32),
        ("bfloat16", None, torch.bfloat16),
        ("float16", None, torch.float32),
        ("float16", "float16", torch.float16),
        ("bfloat16", torch.float32, torch.float32),
    ],
)
def test_dtype(gptq_folder, stated, asked, expected):
    folder, model = gptq_folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": stated}))
    loaded = load_model(folder, device="cpu", dtype=asked)
    assert loaded.dtype == expected
    assert loaded.config.dtype == expected
    assert loaded.model.layers[0].mlp.up_proj.weight_scale.dtype == torch.float16
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    # Half a unit in the last place, for the two dozen roundings of two layers.
    bound = CLOSE if expected == torch.float32 else 24 * torch.finfo(expected).eps
    assert w.relative_error(w.logits(loaded), w.logits(model)) < bound


def test_target_restricts_selection(gptq_folder):
    loaded = load_model(gptq_folder[0], target="cpu:avx2")
    assert {str(row.decision.target) for row in explain(loaded).rows} == {"cpu:avx2"}
    with pytest.raises(errors.TargetError, match="the target is cuda:sm_90"):
        load_model(gptq_folder[0], device="cpu", target="cuda:sm_90")


def test_generation_config_is_read(gptq_folder):
    folder, _ = gptq_folder
    (folder / "generation_config.json").write_text('{"max_new_tokens": 7, "eos_token_id": 5}')
    loaded = load_model(folder, device="cpu")
    assert loaded.generation_config.max_new_tokens == 7
    out = loaded.generate(torch.tensor([[3, 4, 5]]), do_sample=False, max_new_tokens=4)
    assert out.shape[1] <= 7
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(errors.CheckpointError, match=r"generation_config\.json"):
        load_model(folder, device="cpu")


def test_what_would_spoil_the_weights_is_refused(gptq_folder, tmp_path):
    loaded = load_model(gptq_folder[0], device="cpu")
    with pytest.raises(errors.WeightError, match="keep the folder"):
        loaded.save_pretrained(tmp_path / "out")
    with pytest.raises(errors.WeightError, match="load_model"):
        loaded.to(torch.bfloat16)
    loaded.to("cpu")


def test_transformers_missing(monkeypatch, gptq_folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(errors.MissingDependencyError, match=r"pip install 'qcore\[models\]'"):
        load_model(gptq_folder[0])


def test_importing_brings_no_transformers():
    code = (
        "import sys, qcore, qcore.quantization, qcore.models; qcore.load_model; "
        "sys.exit('transformers' in sys.modules or 'safetensors' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_threads_build_their_modules_as_always():
    from qcore.models.skeleton import _parameters_on_meta

    built = []
    with _parameters_on_meta(10):
        thread = threading.Thread(target=lambda: built.append(torch.nn.Linear(2, 2)))
        thread.start()
        thread.join()
        assert torch.nn.Linear(2, 2).weight.is_meta
    assert built[0].weight.device.type == "cpu"
