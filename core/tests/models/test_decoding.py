"""`generate` against transformers' own loop: the same tokens, in every way they may end."""

import pytest
import torch
import transformers
from qcore.errors import QcoreError
from qcore.models import compile_decoding, decoding, fp8_cache

PROMPT = torch.arange(5, 12)[None]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "qwen3": transformers.Qwen3Config(**SIZES),
    "qwen3_moe": transformers.Qwen3MoeConfig(**SIZES, **EXPERTS),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=12),
    "gemma2": transformers.Gemma2Config(**SIZES, sliding_window=12),
    "gemma3": transformers.Gemma3TextConfig(**SIZES, sliding_window=12, layer_types=KINDS),
    "gpt2": transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, eos_token_id=None, bos_token_id=None
    ),
    "phi3": transformers.Phi3Config(**SIZES),  # prepares inputs in a way of its own
    "mamba": transformers.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2),
}
BUFFERED = ("llama", "qwen3", "qwen3_moe", "mistral", "gemma2", "gemma3", "gpt2")


def build(name, **options):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name], **options).eval()
    model.generation_config.eos_token_id = None
    return model


def generate(model, ids=PROMPT, own=False, **options):
    torch.manual_seed(1)
    options = {"max_new_tokens": 24, "do_sample": False, **options}
    with torch.inference_mode():
        return decoding.generate(model, ids, **options) if own else model.generate(ids, **options)


@pytest.fixture
def steps(monkeypatch):
    """The passes that went through buffers."""
    seen = []
    step = decoding.decoding_step

    def counted(*args):
        seen.append(args)
        return step(*args)

    monkeypatch.setattr(decoding, "decoding_step", counted)
    return seen


@pytest.mark.parametrize("prompt", [1, 7, 11, 12, 13, 30])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_tokens(name, prompt, steps):
    """Prompts within, at and beyond the window of 12."""
    model, ids = build(name), torch.arange(5, 5 + prompt)[None]
    expected = generate(model, ids)
    assert torch.equal(generate(model, ids, own=True), expected)
    assert len(steps) == (23 if name in BUFFERED else 0)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2, "bad_words_ids": [[50]]},
        {"max_new_tokens": 1},
        {"max_length": 9, "max_new_tokens": None},
        {"min_new_tokens": 5, "eos_token_id": 7},
    ],
    ids=str,
)
def test_options(name, options, steps):
    model = build(name)
    expected = generate(model, **options)
    assert torch.equal(generate(model, own=True, **options), expected)
    assert len(steps) == expected.shape[1] - PROMPT.shape[1] - 1


def test_it_stops_at_the_end_of_the_text():
    model = build("llama")
    made = generate(model)[0, PROMPT.shape[1] :].tolist()
    last = made.index(made[10])
    ids = generate(model, eos_token_id=[1, made[10]], own=True)
    assert ids[0, PROMPT.shape[1] :].tolist() == made[: last + 1]


def test_buffers_grow(monkeypatch, steps):
    monkeypatch.setattr(decoding, "_ROOM", 4)
    model = build("gemma3")
    expected = generate(model, max_new_tokens=50)
    assert torch.equal(generate(model, max_new_tokens=50, own=True), expected)
    assert len(steps) == 49


def test_streamer():
    class Streamer:
        def __init__(self):
            self.got, self.ended = [], 0

        def put(self, value):
            self.got.append(value.tolist())

        def end(self):
            self.ended += 1

    model, plain, own = build("llama"), Streamer(), Streamer()
    generate(model, streamer=plain)
    generate(model, streamer=own, own=True)
    assert own.got == plain.got
    assert own.ended == plain.ended == 1


def test_what_goes_the_old_way(steps):
    """Padding, several texts, a cache of the caller's, further results, an attention of its own."""
    model = build("llama")
    two = torch.stack((PROMPT[0], PROMPT[0] + 1))
    padded = torch.cat((torch.zeros(1, 2, dtype=torch.long), PROMPT), dim=1)
    for ids, options in (
        (two, {}),
        (padded, {"attention_mask": (padded != 0).long()}),
        (PROMPT, {"use_cache": False}),
        (PROMPT, {"cache_implementation": "static"}),
    ):
        expected = generate(model, ids, **options)
        assert torch.equal(generate(model, ids, own=True, **options), expected)
    caches = [fp8_cache(model, "dynamic") for _ in range(2)]
    expected = generate(model, past_key_values=caches[0])
    found = generate(model, past_key_values=caches[1], own=True)
    assert torch.equal(found, expected)
    wide = {"return_dict_in_generate": True, "output_logits": True}
    expected = torch.stack(generate(model, **wide).logits)
    found = torch.stack(generate(model, own=True, **wide).logits)
    assert torch.equal(found, expected)
    assert not steps


def test_eager_attention(steps):
    model = build("gemma3", attn_implementation="eager")
    expected = generate(model)
    assert torch.equal(generate(model, own=True), expected)
    assert steps


def test_beams_are_refused():
    with pytest.raises(QcoreError, match="the mode is beam_search"):
        generate(build("llama"), num_beams=2, own=True)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_compiled(name, monkeypatch):
    """One graph, over a window that fills up and buffers that grow."""
    monkeypatch.setattr(decoding, "_ROOM", 16)
    count = 0

    def backend(graph, inputs):
        nonlocal count
        count += 1
        return graph

    expected = generate(build(name), max_new_tokens=40)
    model = build(name)
    compile_decoding(model, backend=backend)
    for _ in range(2):
        found = generate(model, max_new_tokens=40, own=True)
        assert torch.equal(found, expected)
    assert count == 1


@pytest.mark.slow
def test_machine_code():
    expected = generate(build("gemma3"))
    model = build("gemma3")
    compile_decoding(model)
    assert torch.equal(generate(model, own=True), expected)
