"""``load_model(quantize=...)``: the bits of a file that `quantize_checkpoint` wrote."""

import pytest
import torch
from qcore.errors import CheckpointError, ConfigError
from qcore.models import explain, inspect_checkpoint, load_model
from qcore.models.load import NOTES
from qcore.quantization.linear import QuantizedLinear
from qcore.quantize import (
    ActivationRange,
    ActivationScales,
    QuantizeScheme,
    quantize_checkpoint,
)

transformers = pytest.importorskip("transformers")

SCHEMES = [
    "int4-g32",
    "int4-asym-g32",
    "int2-g32",
    "int8-channel",
    "int8",
    "int8-static",
    "int8-static-asym",
    "fp8",
    "fp8-weight-only",
    "fp8-tensor",
    "fp8-static",
    "fp8-block",
    "fp8-block-weight-only",
    "mxfp8",
    "mxfp8-weight-only",
    "mxfp4",
    "mxfp4-weight-only",
    "nvfp4",
    "nvfp4-weight-only",
]
LAYERS = [
    f"model.layers.{i}.{name}_proj"
    for i in (0, 1)
    for name in (
        *(f"self_attn.{letter}" for letter in "qkvo"),
        *(f"mlp.{part}" for part in ("gate", "up", "down")),
    )
]


def scales_for(scheme):
    """A range of its own for each layer, so that a mistaken one shows."""
    if not QuantizeScheme.parse(scheme).calibrated:
        return None
    ranges = {n: ActivationRange(-3.0 - i / 8, 2.0 + i / 4) for i, n in enumerate(LAYERS)}
    return ActivationScales(scheme, "minmax", ranges)


def load(path, **options):
    return load_model(path, dtype=torch.float32, device="cpu", **options)


def same(one, other):
    """The same tensors, bit by bit, and the same kernels on the same configs."""
    tensors, others = dict(one.named_parameters()), dict(other.named_parameters())
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape) == (others[name].dtype, others[name].shape)
        mine, its = (t.detach().contiguous().reshape(-1) for t in (tensor, others[name]))
        assert torch.equal(mine.view(torch.uint8), its.view(torch.uint8)), name
    rows, others = explain(one).rows, explain(other).rows
    assert [(r.layer, r.decision.config) for r in rows] == [
        (r.layer, r.decision.config) for r in others
    ]


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_bits_are_those_of_the_file(llama, tmp_path, scheme, search):
    scales = scales_for(scheme)
    quantize_checkpoint(llama, tmp_path / "out", scheme=scheme, scales=scales, search=search)
    online = load(llama, quantize=scheme, scales=scales, search=search)
    file = load(tmp_path / "out")
    same(online, file)
    assert len(explain(online).rows) == 14
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(online(ids).logits, file(ids).logits)


@pytest.mark.parametrize("head", ["int8-channel", "fp8", "nvfp4-weight-only"])
def test_a_tied_head_gets_a_weight_of_its_own(tied_llama, tmp_path, head):
    quantize_checkpoint(tied_llama, tmp_path / "out", scheme="int4-g32", lm_head_scheme=head)
    online = load(tied_llama, quantize="int4-g32", lm_head_scheme=head)
    same(online, load(tmp_path / "out"))
    assert isinstance(online.lm_head, QuantizedLinear)
    assert not online.config.tie_word_embeddings
    assert getattr(online, NOTES) == ()


def test_a_tied_head_that_is_not_asked_for_stays_tied(tied_llama):
    model = load(tied_llama, quantize="int4-g32")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings


def test_layers_that_do_not_fit_are_kept_and_noted(llama):
    model = load(llama, quantize="int4-g64")
    assert type(model.model.layers[0].mlp.down_proj) is torch.nn.Linear
    assert isinstance(model.model.layers[0].mlp.up_proj, QuantizedLinear)
    notes = getattr(model, NOTES)
    assert len(notes) == 2
    assert "mlp.down_proj is kept in float: K=96 is no multiple of the group of 64" in notes[0]


def test_targets_and_ignored_layers(llama, tmp_path):
    choice = {"targets": ["re:.*mlp"], "ignore": ["model.layers.1.mlp.up_proj"]}
    report = quantize_checkpoint(llama, tmp_path / "out", scheme="fp8", **choice)
    online = load(llama, quantize="fp8", **choice)
    same(online, load(tmp_path / "out"))
    names = {row.layer for row in explain(online).rows}
    assert names == {layer.name for layer in report.layers}
    assert len(names) == 5
    assert all("mlp" in name for name in names)


def test_nvfp4_without_calibration_scales_each_token(llama):
    model = load(llama, quantize="nvfp4")
    assert "dynamic token" in str(model.model.layers[0].mlp.up_proj.kernel.config.describe())
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        plain, found = load(llama)(ids).logits, model(ids).logits
    assert (found - plain).norm() < 0.5 * plain.norm()


def test_progress_counts_the_layers(llama):
    steps = []
    load(llama, quantize="int8", progress=lambda *step: steps.append(step))
    assert [step[0] for step in steps] == list(range(1, len(steps) + 1))
    assert {"model.layers.1.mlp.down_proj"} <= {step[2] for step in steps}


def test_inspect_shows_what_loading_would_make(tied_llama):
    report = inspect_checkpoint(
        tied_llama, target="cpu", quantize="int4-g32", lm_head_scheme="int8-channel"
    )
    assert report.method == "online"
    assert [row.layer for row in report.layers if row.layer == "lm_head"] == ["lm_head"]
    assert len(report.layers) == 15
    assert "rounded to int4-g32 at load" in report.layers[-1].scheme
    static = inspect_checkpoint(tied_llama, target="cpu", quantize="int8-static")
    assert static.layers[0].decision.config.is_static_input_scheme


# -- what is refused ---------------------------------------------------------------------------


def test_a_quantized_checkpoint_is_refused(llama, tmp_path):
    quantize_checkpoint(llama, tmp_path / "out", scheme="int8")
    with pytest.raises(CheckpointError, match=r"quantized already .compressed-tensors.*quantize="):
        load(tmp_path / "out", quantize="int4-g32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int5"}, "scheme 'int5' cannot be read"),
        ({"quantize": 4}, "it must be a name"),
        ({"quantize": "int8", "ignore": ["nothing"]}, "ignore: 'nothing' fits no linear layer"),
        ({"quantize": "int8", "ignore": "lm_head"}, "it must be a list"),
        ({"quantize": "int8", "targets": ["re:("]}, "no regular expression"),
        ({"quantize": "int8-static"}, "needs an activation scale from calibration"),
        ({"quantize": "fp8-static"}, "scales="),
        ({"quantize": "int8", "scales": scales_for("int8-static")}, "no layer's scheme"),
        ({"ignore": ["lm_head"]}, "ignore: of use only with quantize="),
        ({"search": False}, "search: of use only with quantize="),
    ],
)
def test_bad_arguments(llama, options, message):
    with pytest.raises(ConfigError, match=message):
        load(llama, **options)


def test_scales_of_another_scheme_or_without_a_layer(llama):
    scales = scales_for("int8-static")
    found = ActivationScales("int8-static", "mse", scales.ranges)
    with pytest.raises(ConfigError, match="found for int8-static with the observer mse"):
        load(llama, quantize="fp8-static", scales=found)
    fewer = dict(scales.ranges)
    del fewer["model.layers.1.mlp.up_proj"]
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj was not calibrated"):
        load(llama, quantize="fp8-static", scales=ActivationScales("x", "minmax", fewer))


def test_weights_that_are_no_numbers_are_refused(llama, tmp_path):
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    model.model.layers[1].mlp.up_proj.weight.data[2, 2] = float("nan")
    model.save_pretrained(tmp_path / "bad")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj: its weight cannot be"):
        load(tmp_path / "bad", quantize="nvfp4")


def test_files_with_nvfp4_activations_need_calibration(llama, tmp_path):
    with pytest.raises(ConfigError, match=r"--calibrate TEXTFILE; nvfp4-weight-only needs none"):
        quantize_checkpoint(llama, tmp_path / "out", scheme="nvfp4")
    assert not (tmp_path / "out").exists()
