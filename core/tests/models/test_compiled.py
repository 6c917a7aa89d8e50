"""`compile_decoding` against the same model uncompiled."""

import pytest
import torch
import transformers
from qcore.models import compile_decoding

PROMPT = torch.arange(5, 12)[None]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "gemma3": transformers.Gemma3TextConfig(
        **SIZES, sliding_window=12, layer_types=["sliding_attention", "full_attention"]
    ),
}


class Graphs:
    """A backend that runs what was traced as it is, and counts."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph


def build(name):
    torch.manual_seed(0)
    torch._dynamo.reset()
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def logits(model, ids=PROMPT, **options):
    out = model.generate(
        ids,
        do_sample=False,
        max_new_tokens=16,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return torch.stack(out.logits)


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_same_logits(name):
    """Over a window that fills up, which takes other graphs; nothing else does."""
    expected = logits(build(name))
    model, graphs = build(name), Graphs()
    compile_decoding(model, backend=graphs)
    torch.testing.assert_close(logits(model), expected)
    most = graphs.count
    assert 1 <= most <= (4 if name == "gemma3" else 1)
    torch.testing.assert_close(logits(model), expected)
    assert graphs.count == most


@torch.inference_mode()
def test_padding_is_masked():
    ids = torch.cat((torch.zeros(1, 3, dtype=torch.long), PROMPT), dim=1)
    mask = (ids != 0).long()
    expected = logits(build("llama"), ids, attention_mask=mask)
    model = build("llama")
    compile_decoding(model, backend=Graphs())
    torch.testing.assert_close(logits(model, ids, attention_mask=mask), expected)


@torch.inference_mode()
def test_prompts_and_calls_without_a_cache_are_not_compiled():
    model, graphs = build("llama"), Graphs()
    expected = model(PROMPT).logits
    compile_decoding(model, backend=graphs)
    assert torch.equal(model(PROMPT).logits, expected)
    torch.testing.assert_close(model(input_ids=PROMPT[:, :1]).logits, expected[:, :1])
    model.generate(PROMPT, max_new_tokens=1)
    assert graphs.count == 0


@torch.inference_mode()
def test_a_prompt_has_the_logits_of_its_last_token_alone():
    model, widths = build("llama"), []
    model.lm_head.register_forward_hook(lambda _, inputs, out: widths.append(out.shape[1]))
    compile_decoding(model, backend=Graphs())
    model.generate(PROMPT, max_new_tokens=1)
    assert widths == [1]


@pytest.mark.slow
@torch.inference_mode()
def test_machine_code():
    expected = logits(build("gemma3"))
    model = build("gemma3")
    compile_decoding(model)
    torch.testing.assert_close(logits(model), expected)
