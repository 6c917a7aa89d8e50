"""`Fp8Cache` against attention that rounds keys and values by arithmetic of its own."""

import math

import pytest
import torch
import transformers
from qcore import errors
from qcore.models import Fp8Cache, KVScales, cache_bytes, fp8_cache
from qcore.models.kv_cache import decode, encode
from transformers import DynamicCache

import checkpoint_writers as w  # isort: skip

SCALES = {0: KVScales(0.01, 0.003), 1: KVScales(0.02, 0.05)}
GEMMA = {
    "head_dim": 16,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "num_hidden_layers": 3,
}
PROMPT = torch.arange(5, 45).reshape(2, 20) % 96


def e4m3(x, scale):
    """The nearest e4m3 value, from its definition: 4 significant bits, least step 2**-9."""
    y = x.float() / torch.tensor(scale, dtype=torch.float32)
    exponent = torch.frexp(y).exponent.double() - 1
    step = torch.exp2(exponent.clamp(min=-6) - 3)
    rounded = (torch.round(y.double() / step) * step).clamp(-448, 448)
    return rounded * scale


# -- rounding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 0.0137, 3.0])
def test_error_of_a_known_scale(dtype, scale):
    """Half a step: 2**-4 of the value, or 2**-10 scales where e4m3 has no exponent left.

    Then the product is rounded to the dtype. The bound of 1 + 1e-5 is the float32 division's.
    """
    torch.manual_seed(0)
    x = (torch.randn(2, 3, 50, 16) * torch.logspace(-6, 2, 50)[:, None] * scale).to(dtype)
    x = x.clamp(-448 * scale, 448 * scale)
    y = decode(encode(x, scale), scale, dtype)
    assert y.dtype == dtype
    own = torch.finfo(dtype).eps / 2 * x.double().abs() * (1 + 2**-4)
    bound = (x.double().abs() * 2**-4).clamp(min=2**-10 * scale) * (1 + 1e-5) + own
    assert ((y.double() - x.double()).abs() <= bound + torch.finfo(dtype).smallest_normal).all()
    assert torch.equal(y, e4m3(x, scale).to(dtype)) or dtype == torch.float64
    assert encode(x, scale).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_of_scales_for_each_row(dtype):
    """The bound is that of a known scale, with amax / 448 of the row."""
    torch.manual_seed(1)
    x = (torch.randn(2, 3, 40, 16) * torch.logspace(-3, 3, 40)[:, None]).to(dtype)
    x[0, 0, 0] = 0
    stored = encode(x, None)
    assert stored.shape == (2, 3, 40, 16 + 4)
    y = decode(stored, None, dtype).double()
    scale = x.double().abs().amax(-1, keepdim=True) / 448
    bound = torch.maximum(x.double().abs() * 2**-4, 2**-10 * scale) * (1 + 1e-5)
    own = torch.finfo(dtype).eps / 2 * x.double().abs() * (1 + 2**-4)
    assert ((y - x.double()).abs() <= bound + own).all()


def test_what_is_too_large_and_what_is_no_number():
    x = torch.tensor([[1e4, -1e4, math.inf, math.nan]])
    y = decode(encode(x, 2.0), 2.0, torch.float32)
    assert y[0, :3].tolist() == [896.0, -896.0, 896.0]
    assert y[0, 3].isnan()
    assert decode(encode(x, None), None, torch.float32).isnan().all()
    assert encode(torch.empty(1, 2, 0, 8), None).shape == (1, 2, 0, 12)


def test_attention_moves_no_more_than_its_scores_allow():
    """Scores move by at most d = |q| |k| 2**-4 / sqrt(D), weights by a factor within exp(+-2d).

    So a result moves by (exp(2d) - 1) max|v| + 2**-4 max|v|; a scale of amax / 448 keeps
    subnormals, whose error is no more than 2**-10 amax / 448 each, far below that.
    """
    torch.manual_seed(2)
    q, k, v = (torch.randn(1, 2, 30, 16, dtype=torch.float64) * s for s in (0.3, 0.5, 1.0))
    attention = torch.nn.functional.scaled_dot_product_attention
    scales = [float(t.abs().max() / 448) for t in (k, v)]
    rounded = [decode(encode(t, s), s, torch.float64) for t, s in zip((k, v), scales, strict=True)]
    moved = (attention(q, *rounded) - attention(q, k, v)).abs().max()
    d = q.norm(dim=-1).max() * k.norm(dim=-1).max() * 2**-4 / 4
    assert moved <= (torch.exp(2 * d) - 1 + 2**-4) * v.abs().max() * 1.001
    assert moved > 0


# -- models ------------------------------------------------------------------------------------


def attention_that_rounds(scales):
    """Softmax attention on the whole sequence, keys and values rounded by `e4m3`."""

    def forward(module, query, key, value, attention_mask, scaling, **_):
        scale = scales.get(module.layer_idx, KVScales())
        groups = query.shape[1] // key.shape[1]
        key = e4m3(key, scale.k).repeat_interleave(groups, 1)
        value = e4m3(value, scale.v).repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * scaling
        size, window = key.shape[2], getattr(module, "sliding_window", None) or key.shape[2]
        age = torch.arange(size)[:, None] - torch.arange(size)
        scores = scores.masked_fill((age < 0) | (age >= window), -math.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    return forward


def stepped(model, cache, steps):
    """Logits of `PROMPT`, read in ``steps`` of so many tokens."""
    parts = []
    with torch.no_grad():
        for part in PROMPT.split(steps, dim=1):
            parts.append(model(part, past_key_values=cache, use_cache=True).logits)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_as_attention_that_rounds(name, monkeypatch):
    """In float64, where no sum's order moves a code, however the prompt is cut."""
    model = w.tiny_model(name, **(GEMMA if name.startswith("Gemma") else {})).double()
    transformers.AttentionInterface.register("rounds", attention_that_rounds(SCALES))
    model.set_attn_implementation("rounds")
    with torch.no_grad():
        expected = model(PROMPT, use_cache=False).logits
    model.set_attn_implementation("eager")
    plain = stepped(model, DynamicCache(config=model.config), [20])
    assert w.relative_error(plain, expected) > 1e-3
    for steps in ([20], [1] * 20, [7, 1, 5, 7]):
        got = stepped(model, Fp8Cache(model.config, SCALES), steps)
        assert w.relative_error(got, expected) < 1e-6, steps


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
@pytest.mark.parametrize("scales", ["checkpoint", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_close_to_a_cache_in_the_models_dtype(name, scales, dtype):
    """Logits move like the rounding: a step is at most 2**-3 of a value, a uniform error of it
    2**-3 / sqrt(12) / 1.4 = 0.026 rms. If all of the logits came out of attention, each layer's k
    and v would add that once, independently; some goes past it, and sums over tokens average it.
    """
    model = w.tiny_model(name, **(GEMMA if name.startswith("Gemma") else {})).to(dtype)
    expected = stepped(model, DynamicCache(config=model.config), [12, *[1] * 8])
    cache = fp8_cache(model, scales)
    got = stepped(model, cache, [12, *[1] * 8])
    assert got.dtype == dtype
    layers = model.config.num_hidden_layers
    assert 0 < w.relative_error(got, expected) < 0.026 * math.sqrt(2 * layers)
    for keys, values, _ in cache:
        assert keys.dtype == values.dtype == dtype


def test_bytes():
    """A byte an element; four more a row with scales of its own; windows hold their tokens."""
    model = w.tiny_model("Gemma3ForCausalLM", **GEMMA).to(torch.bfloat16)
    heads, D = model.config.num_key_value_heads, model.config.head_dim
    rows = 2 * 2 * heads * (20 + 2 * 5)  # k and v; 2 sequences; 20 tokens, and twice window - 1
    for scales, row in (("checkpoint", D), ("dynamic", D + 4)):
        cache = fp8_cache(model, scales)
        assert cache.cache_bytes() == 0
        stepped(model, cache, [20])
        assert cache.cache_bytes() == rows * row
        stepped(model, cache, [20])
        assert cache.get_seq_length() == 40
        assert cache.cache_bytes() == (rows + 2 * 2 * heads * 20) * row
    plain = DynamicCache(config=model.config)
    stepped(model, plain, [1] * 20)
    assert cache_bytes(plain) >= 2 * rows * D


@pytest.mark.parametrize("scales", ["checkpoint", "dynamic"])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_rows_are_moved_whole(name, scales):
    """Reordered, repeated and selected sequences are the same bytes elsewhere."""
    model = w.tiny_model(name, **(GEMMA if name.startswith("Gemma") else {}))
    cache = fp8_cache(model, scales)
    stepped(model, cache, [20])
    before = [(k.clone(), v.clone()) for k, v, _ in cache]

    def check(rows):
        for (k, v), (new_k, new_v, _) in zip(before, cache, strict=True):
            assert torch.equal(new_k, k[rows])
            assert torch.equal(new_v, v[rows])

    check([0, 1])
    cache.reorder_cache(torch.tensor([1, 0]))
    check([1, 0])
    cache.batch_repeat_interleave(2)
    check([1, 1, 0, 0])
    cache.batch_select_indices(torch.tensor([0, 3]))
    check([1, 0])
    cache.reset()
    assert cache.get_seq_length() == 0
    assert [k for k, _, _ in fp8_cache(model)] == [None] * len(before)


@pytest.mark.parametrize("scales", ["checkpoint", "dynamic"])
def test_cropped_tokens_leave_no_trace(scales):
    model = w.tiny_model()
    cache, whole = fp8_cache(model, scales), fp8_cache(model, scales)
    expected = stepped(model, whole, [15, 5])[:, 15:]
    with torch.no_grad():
        model(PROMPT[:, :15], past_key_values=cache)
        model(PROMPT[:, :4], past_key_values=cache)
        # Later versions take the number of tokens to remove, all take a negative one.
        cache.crop(-4)
        assert cache.get_seq_length() == 15
        got = model(PROMPT[:, 15:], past_key_values=cache).logits
    assert w.relative_error(got, expected) < 1e-6


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"num_beams": 2, "early_stopping": True}])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_generation_in_batches_and_beams(name, how):
    """The same tokens as of attention that rounds, run on the whole sequence at every step."""
    model = w.tiny_model(name, **(GEMMA if name.startswith("Gemma") else {})).double()
    mask = torch.ones_like(PROMPT)
    args = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    args |= {"eos_token_id": None, **how}
    cache = Fp8Cache(model.config, SCALES)
    got = model.generate(PROMPT, past_key_values=cache, **args)
    assert cache.get_seq_length() == 28
    transformers.AttentionInterface.register("rounds", attention_that_rounds(SCALES))
    model.set_attn_implementation("rounds")
    assert torch.equal(got, model.generate(PROMPT, use_cache=False, **args))


def test_left_padding():
    """A padded sequence generates what it generates alone."""
    model = w.tiny_model().double()
    args = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = model.generate(PROMPT[:1, 4:], past_key_values=fp8_cache(model), **args)
    mask = torch.ones_like(PROMPT)
    mask[0, :4] = 0
    both = model.generate(PROMPT, attention_mask=mask, past_key_values=fp8_cache(model), **args)
    assert torch.equal(both[0, 20:], alone[0, 16:])


# -- what has none -----------------------------------------------------------------------------


def test_models_without_such_a_cache():
    model = w.tiny_model()
    with pytest.raises(errors.UnsupportedQuantizationError, match="for layer 7; the model has 2"):
        fp8_cache(model, {7: KVScales()})
    with pytest.raises(errors.ConfigError, match="'none'"):
        fp8_cache(model, "none")
    config = transformers.T5Config(d_model=32, num_layers=1, d_ff=32, num_heads=2, d_kv=16)
    with pytest.raises(errors.UnsupportedQuantizationError, match="encoder and decoder"):
        Fp8Cache(config)


def test_kinds_of_layers_that_are_not_supported(monkeypatch):
    from transformers import cache_utils

    class OtherLayer(cache_utils.DynamicLayer):
        pass

    if not hasattr(cache_utils, "DYNAMIC_LAYER_TYPE_MAPPING"):
        pytest.skip("this version of transformers has no table of layers")
    mapping = {**cache_utils.DYNAMIC_LAYER_TYPE_MAPPING, "full_attention": OtherLayer}
    monkeypatch.setattr(cache_utils, "DYNAMIC_LAYER_TYPE_MAPPING", mapping)
    with pytest.raises(errors.UnsupportedQuantizationError, match=r"layer 0.*OtherLayer"):
        fp8_cache(w.tiny_model())


def test_layers_without_keys_stay_as_they_are():
    config = transformers.Qwen3NextConfig(
        num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]
    )
    if not hasattr(transformers.cache_utils, "LinearAttentionLayer"):
        pytest.skip("this version of transformers has no such layers in its caches")
    kinds = [type(layer).__name__ for layer in Fp8Cache(config).layers]
    assert kinds == ["LinearAttentionLayer", "Fp8Layer"]
