"""Bytes, error and speed of an FP8 KV cache beside transformers' own, over a long context.

The models are random: bytes and speed do not depend on weights, the error does, so it is no more
than a sanity check. Each cache reads the same context in chunks, then decodes token by token on
what it holds. With --model, a trained model says what a text's tokens cost it with each cache.

python benchmarks/kv_cache.py [--context 4096] [--model FOLDER --text FILE]
    [--out benchmarks/results/kv_cache.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from environment import environment
from qcore.models import KVScales, cache_bytes, fp8_cache, load_model
from transformers import (
    AutoTokenizer,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

CHUNK = 512
DECODED = 16
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2**17,
}


def models() -> Iterator[tuple[str, Any]]:
    """Random models in bfloat16."""
    torch.manual_seed(0)
    yield (
        "Llama, 8 layers, 4 KV heads of 64",
        LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=8)).to(torch.bfloat16).eval(),
    )
    kinds = [*["sliding_attention"] * 5, "full_attention"]
    config = Gemma3TextConfig(
        **SIZES, num_hidden_layers=6, sliding_window=512, layer_types=kinds, pad_token_id=0
    )
    yield (
        "Gemma 3, 5 layers with a window of 512 and 1 full, 4 KV heads of 64",
        Gemma3ForCausalLM(config).to(torch.bfloat16).eval(),
    )


def calibrated(cache: DynamicCache) -> dict[int, KVScales]:
    """amax / 448 of what each layer of a cache holds."""
    return {
        n: KVScales(*(float(t.abs().max()) / 448 for t in (layer.keys, layer.values)))
        for n, layer in enumerate(cache.layers)
    }


def read(model: Any, ids: torch.Tensor, cache: Any) -> tuple[dict[str, float], torch.Tensor]:
    """Read all but the last tokens in chunks and decode those; bytes, times and logits."""
    context = ids.shape[1] - DECODED
    start = time.perf_counter()
    for part in ids[:, :context].split(CHUNK, dim=1):
        model(part, past_key_values=cache, logits_to_keep=1)
    prefill = time.perf_counter() - start
    logits, times = [], []
    for n in range(context, ids.shape[1]):
        start = time.perf_counter()
        logits.append(model(ids[:, n : n + 1], past_key_values=cache).logits)
        times.append(time.perf_counter() - start)
    result = {
        "bytes": cache_bytes(cache),
        "prefill_s": prefill,
        "decode_ms": statistics.median(times) * 1e3,
    }
    return result, torch.cat(logits, 1).float()


def measure(model: Any, context: int) -> dict[str, Any]:
    """All caches on one model."""
    ids = torch.randint(0, SIZES["vocab_size"], (1, context + DECODED))
    plain = DynamicCache(config=model.config)
    result, expected = read(model, ids, plain)
    results: dict[str, Any] = {"bfloat16": result}
    caches = {
        "e4m3, scales of 1.0": fp8_cache(model),
        "e4m3, amax / 448 of each layer": fp8_cache(model, calibrated(plain)),
        "e4m3, a scale for each head and token": fp8_cache(model, "dynamic"),
    }
    del plain
    for name, cache in caches.items():
        result, logits = read(model, ids, cache)
        results[name] = {
            **result,
            "of_bfloat16": result["bytes"] / results["bfloat16"]["bytes"],
            "logits_relative_error": float((logits - expected).norm() / expected.norm()),
            "same_greedy_tokens": float((logits.argmax(-1) == expected.argmax(-1)).float().mean()),
        }
    return results


def cost(model: Any, ids: torch.Tensor, cache: Any) -> dict[str, float]:
    """Nats a token, each predicted from all before it in the cache; and the cache's bytes."""
    total = 0.0
    for start in range(0, ids.shape[1] - 1, CHUNK // 2):
        part = ids[:, start : start + CHUNK // 2]
        logits = model(part, past_key_values=cache).logits[0].float()
        following = ids[0, start + 1 : start + 1 + part.shape[1]]
        total += float(
            torch.nn.functional.cross_entropy(
                logits[: following.numel()], following, reduction="sum"
            )
        )
    return {"bytes": cache_bytes(cache), "nats_a_token": total / (ids.shape[1] - 1)}


def trained(folder: Path, text: Path, context: int) -> dict[str, Any]:
    """The cost of a text with each cache."""
    model = load_model(folder, device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(text.read_text(), return_tensors="pt")["input_ids"][:, :context]
    plain = DynamicCache(config=model.config)
    results = {"bfloat16": cost(model, ids, plain)}
    caches = {
        "e4m3, scales of 1.0": fp8_cache(model, {}),
        "e4m3, amax / 448 of each layer": fp8_cache(model, calibrated(plain)),
        "e4m3, a scale for each head and token": fp8_cache(model, "dynamic"),
    }
    results |= {name: cost(model, ids, cache) for name, cache in caches.items()}
    amax = {
        kind: max(float(getattr(layer, kind).abs().max()) for layer in plain.layers)
        for kind in ("keys", "values")
    }
    return {
        "model": folder.resolve().name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "text": text.name,
        "tokens": ids.shape[1],
        "largest": amax,
        "caches": results,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=4096, help="tokens before those decoded")
    parser.add_argument("--model", type=Path, help="a trained model's folder")
    parser.add_argument("--text", type=Path, help="what it is to predict")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    output: dict[str, Any] = {
        "environment": environment("transformers"),
        "context": args.context,
        "decoded": DECODED,
        "models": {},
    }
    with torch.inference_mode():
        for name, model in models():
            output["models"][name] = measure(model, args.context)
            print(name)
            for cache, row in output["models"][name].items():
                error = row.get("logits_relative_error")
                print(
                    f"  {cache:<40} {row['bytes'] / 2**20:8.2f} MiB  "
                    f"{row['decode_ms']:7.1f} ms a token"
                    + (f"  logits off by {error:.2%}" if error is not None else "")
                )
        if args.model is not None and args.text is not None:
            found = trained(args.model, args.text, args.context)
            output["trained"] = found
            print(f"{found['model']}, {found['tokens']} tokens of {found['text']}")
            for cache, row in found["caches"].items():
                print(
                    f"  {cache:<40} {row['bytes'] / 2**20:8.2f} MiB  "
                    f"{row['nats_a_token']:.4f} nats a token"
                )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(output, indent=2) + "\n")


if __name__ == "__main__":
    main()
