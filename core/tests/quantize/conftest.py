"""A tiny Llama in float, saved as transformers saves it."""

import pytest
import torch

transformers = pytest.importorskip("transformers")


def tiny_llama(folder, *, tied=False, dtype=torch.bfloat16, max_shard_size="5GB", **changes):
    fields = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 120,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        **changes,
    }
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).to(dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "LICENSE").write_text("yours")
    (folder / "training.bin").write_bytes(b"not to be copied")
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """Not tied, one file."""
    return tiny_llama(tmp_path_factory.mktemp("llama") / "float")


@pytest.fixture(scope="session")
def tied_llama(tmp_path_factory):
    """The head is the embedding; several files."""
    folder = tmp_path_factory.mktemp("tied") / "float"
    return tiny_llama(folder, tied=True, max_shard_size="60KB")
