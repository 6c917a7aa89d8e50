"""The most memory that loading holds beyond the loaded model, beside the size of the largest layer.

A random Llama is written in bfloat16, in several files, and rounded into a few formats. Each way of
loading one of them runs in a process of its own, after a tiny model was loaded in the same way, so
that imports and thread pools are not counted. Another process watches its anonymous memory (what
it allocated; pages of files do not count) while `load_model` runs.

    beyond = peak - before - bytes of the model's parameters and buffers

The layer that is being rounded does not show in full: embedding and head are read last, and what
they take was still free until then. tests/test_load_memory.py has a model without such room.

Each is measured twice: with glibc's malloc as it is, which keeps some of what is freed; and told to
give back all that is larger than 128 KiB (MALLOC_MMAP_THRESHOLD_), which shows what the loader
itself holds.

python benchmarks/load_memory.py [--folder FOLDER] [--out benchmarks/results/load_memory.json]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from environment import environment
from qcore.models import load_model
from qcore.models.checkpoint import open_checkpoint
from qcore.quantize import quantize_checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "vocab_size": 4096,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
TINY = {**SIZES, "vocab_size": 128, "hidden_size": 256, "intermediate_size": 256}
SHARD = "90MB"
WRITTEN = ("int4-g128", "int4-asym-g128", "int8", "fp8", "mxfp4", "nvfp4-weight-only")
ONLINE = ("int4-g128", "int4-asym-g128", "int8", "fp8", "fp8-tensor", "fp8-block", "mxfp8")
ONLINE += ("mxfp4", "nvfp4", "nvfp4-weight-only")

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
KEPT = ("peak", "after", "beyond", "beyond_of_largest", "samples")

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import load_memory
load_memory.child({tiny!r}, {path!r}, {options!r})
"""


def write(folder: Path, sizes: dict[str, int]) -> Path:
    """A random model in bfloat16."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size=SHARD)
    return folder


def child(tiny: str, path: str, options: dict[str, Any]) -> None:
    """What a watched process does; it speaks to the other by lines."""
    options = {**options, "device": "cpu"}
    if "dtype" in options:
        options["dtype"] = getattr(torch, options["dtype"])
    load_model(tiny, **options)
    gc.collect()
    print("ready", flush=True)
    sys.stdin.readline()
    model = load_model(path, **options)
    print("loaded", flush=True)
    sys.stdin.readline()
    seen = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    kernels = sorted(
        {
            type(module.kernel).__name__
            for module in model.modules()
            if hasattr(module, "kernel") and hasattr(module, "decision")
        }
    )
    print(json.dumps({"bytes": sum(seen.values()), "kernels": kernels}), flush=True)


def anonymous(pid: int) -> int:
    """Bytes that a process has allocated and touched."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc does not say RssAnon; this benchmark needs Linux")


def watch(
    tiny: Path, path: Path, options: dict[str, Any], variables: dict[str, str] | None = None
) -> dict[str, Any]:
    """Load in a new process, and look at its memory all the time.

    Args:
        tiny: a folder that is loaded before.
        path: the folder to load.
        options: for `load_model`.
        variables: of the process's environment, besides those here.
    """
    here = str(Path(__file__).resolve().parent)
    code = CHILD.format(here=here, tiny=str(tiny), path=str(path), options=options)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(variables or {})},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"loading {path} with {options} failed")
    before = peak = anonymous(process.pid)
    started = time.perf_counter()
    process.stdin.write("\n")
    process.stdin.flush()
    samples = 0
    while not select.select([process.stdout], [], [], 0.0005)[0]:
        peak = max(peak, anonymous(process.pid))
        samples += 1
    seconds = time.perf_counter() - started
    if process.stdout.readline() != "loaded\n":
        raise RuntimeError(f"loading {path} with {options} failed")
    after = anonymous(process.pid)
    process.stdin.write("\n")
    process.stdin.flush()
    told = json.loads(process.stdout.readline())
    process.wait()
    return {
        "model": told["bytes"],
        "peak": peak - before,
        "after": after - before,
        "beyond": peak - before - told["bytes"],
        "seconds": round(seconds, 2),
        "samples": samples,
        "kernels": told["kernels"],
    }


def cases(folder: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, folder's name and options of each way to load."""
    found: list[tuple[str, str, dict[str, Any]]] = [
        ("float, as it is", "float", {"dtype": "bfloat16"}),
        ("float, as float32", "float", {"dtype": "float32"}),
    ]
    found += [(f"file of {scheme}", scheme, {"dtype": "bfloat16"}) for scheme in WRITTEN]
    found += [
        (f"rounded to {scheme} at load", "float", {"dtype": "bfloat16", "quantize": scheme})
        for scheme in ONLINE
    ]
    return found


def run(folder: Path) -> dict[str, Any]:
    """Write the models and watch every way to load them."""
    for name, sizes in (("tiny", TINY), ("large", SIZES)):
        source = write(folder / name / "float", sizes)
        for scheme in WRITTEN:
            quantize_checkpoint(source, folder / name / scheme, scheme=scheme, search=False)
    tensors = open_checkpoint(folder / "large" / "float").tensors.values()
    largest = max(tensors, key=lambda tensor: tensor.nbytes)
    results = {}
    for name, path, options in cases(folder):
        places = folder / "tiny" / path, folder / "large" / path
        result = watch(*places, options)
        exact = watch(*places, options, GIVE_BACK)
        for part in (result, exact):
            part["beyond_of_largest"] = round(part["beyond"] / largest.nbytes, 3)
        results[name] = {**result, "giving_back": {k: exact[k] for k in KEPT}}
        print(
            f"{name:38} model {result['model'] / 2**20:6.1f} MiB, beyond it "
            f"{result['beyond'] / 2**20:5.1f} MiB ({result['beyond_of_largest']:5.2f} of the "
            f"largest float layer); {exact['beyond'] / 2**20:5.1f} MiB where malloc keeps nothing",
            flush=True,
        )
    return {
        "environment": environment("transformers", "qcore-cpu"),
        "sizes": SIZES,
        "float_bytes": sum(tensor.nbytes for tensor in tensors),
        "files": len({tensor.file for tensor in tensors}),
        "largest_layer": {"name": largest.name, "bytes": largest.nbytes},
        "ways": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="where to write the models, about 1 GB")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = run(Path(folder))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
