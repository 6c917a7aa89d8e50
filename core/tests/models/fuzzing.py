"""Damage small checkpoints at random, and watch what reading them does.

`KINDS` writes one good checkpoint of each format; `damaged` changes one of its files; `watched`
fails on anything but success or a `QcoreError`: another exception, much memory, a file outside the
folder, the network, a pickle, a new process. By hand, for as long as one likes::

    python core/tests/models/fuzzing.py --minutes 10 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

import checkpoint_writers as w
import float_writers as f
import moe_writers as m
import tool_writers as t
import torch
from qcore.errors import QcoreError
from qcore.models import inspect_checkpoint, load_model
from qcore.models.safetensors_file import DTYPES
from safetensors.torch import load, save

try:
    import gguf_writers as g
except ImportError:  # the gguf package writes such files
    g = None

DYNAMIC = {"+:.*mlp.*": {"bits": 4}, "-:.*none.*": {}}
AO_ROW = t.ao("PerRow", dim=-1)


def integers(config, to_tensors=w.gptq_tensors, **how):
    def write(folder):
        model = w.tiny_model(num_hidden_layers=1)
        w.write_folder(folder, model, w.quantize_model(model, to_tensors, **how), config)

    return write


def floats(config, layer):
    def write(folder):
        model = w.tiny_model(num_hidden_layers=1)
        w.write_folder(folder, model, f.quantize_model(model, layer), config)

    return write


def beside(name, write, wrap=lambda config: config):
    """The quantization config in a file of its own."""

    def moved(folder):
        write(folder)
        config = json.loads((folder / "config.json").read_text())
        found = config.pop("quantization_config")
        (folder / "config.json").write_text(json.dumps(config))
        (folder / name).write_text(json.dumps(wrap(found)))

    return moved


def shards(folder):
    integers(w.gptq_config())(folder)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({k: v for k, v in tensors.items() if where[k] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def mixture(folder):
    model = m.tiny_mixture("MixtralForCausalLM", num_hidden_layers=1)
    tensors = m.quantize_mixture(model, w.gptq_tensors)
    w.write_folder(folder, model, tensors, w.gptq_config())


def gguf_file(folder):
    folder.mkdir()
    model = w.tiny_model(num_hidden_layers=1)
    g.write_gguf(folder / "model.gguf", model, ("Q4_0", "Q8_0"))


def quanto(folder):
    model = w.tiny_model(num_hidden_layers=1)
    names = [name for name, _ in w.linears(model)]
    tensors = f.quantize_model(model, t.quanto_bits)
    w.write_folder(folder, model, tensors)
    (folder / "quanto_qmap.json").write_text(json.dumps(t.quanto_map(names, "qint4")))


def nvfp4(weight):
    return f.nvfp4_layer(weight, modelopt=True, input_scale=0.01)


def packed(rounded):
    return w.packed_tensors(rounded, True)


MODELOPT = {"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "model.embed*"], "group_size": 16}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["lm_head"]}
MIXED = {"strategy": "tensor_group", "group_size": 16, "num_bits": 4}
KINDS = {
    "gptq": integers(w.gptq_config(dynamic=DYNAMIC)),
    "gptq beside": beside("quantize_config.json", integers(w.gptq_config(desc_act=True))),
    "shards": shards,
    "mixture": mixture,
    "awq": integers(w.awq_config(), w.awq_tensors, sym=False),
    "auto-round": integers(w.auto_round_config(extra_config={"lm_head": {"bits": 16}})),
    "compressed int": integers(w.ct_config(ignore=["lm_head", "re:.*none$"]), packed),
    "compressed nvfp4": floats(f.ct("nvfp4-pack-quantized", MIXED), f.nvfp4_layer),
    "fp8": floats({**FP8, "weight_block_size": [32, 32]}, lambda x: f.fp8_layer(x, block=(32, 32))),
    "modelopt": beside(
        "hf_quant_config.json",
        floats(MODELOPT, nvfp4),
        lambda found: {"producer": {"name": "modelopt"}, "quantization": found},
    ),
    "bitsandbytes": floats(
        t.bnb_config(bnb_4bit_use_double_quant=True), lambda x: t.bnb_4bit(x, double=True)
    ),
    "hqq": floats(t.hqq_config(), t.hqq_layer),
    "torchao": floats(
        t.ao_config("Int8WeightOnlyConfig", group_size=None, granularity=AO_ROW), t.ao_int
    ),
    "quanto": quanto,
    "plain": lambda folder: w.write_folder(folder, (x := w.tiny_model()), x.state_dict()),
    **({} if g is None else {"gguf": gguf_file}),
}

# -- damage --------------------------------------------------------------------------------------


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


ODD = [
    *(None, True, False, 0, 1, -1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 255, 2**16, 10**6, 2**24),
    *(2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 10**30, -(2**31), -(2**63)),
    *(0.5, -0.0, 1e308, -1e308, float("nan"), float("inf")),
    *("", "x", "4", "128x128", "float16", "e4m3", "int", "group", "\ud800", "\x1b[2J", "a\0b"),
    *("../x", "/etc/passwd", "x" * 5000, "9" * 5000, "re:(a+)+$", "re:[", "re:" + "(" * 500),
    *("re:(?P<a>.)(?P=a)", "re:.*", "*", "[", "lm_head", "torch.float32", "mixed-precision"),
    *([], [[]], [1], ["x"], [None], [1, 2], [2**40, 2**40], {}, {"": 1}, {"bits": 4}, deep(40)),
]


def places(value, path=()):
    """Every path into a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items if isinstance(value, (dict, list)) else ():
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, key))
        else:
            yield (*path, key)


def damaged_value(value, rng):
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        paths = [path for path in places(value) if path]
        if not paths:
            return value
        *outer, key = rng.choice(paths)
        at = value
        for step in outer:
            at = at[step]
        kind = rng.randrange(6)
        if kind == 0:
            del at[key]
        elif kind == 1 and isinstance(at[key], (int, float)):
            at[key] = at[key] + rng.choice((-1, 1)) if rng.random() < 0.5 else at[key] * 2
        elif kind == 2 and isinstance(at, dict):
            at[rng.choice(("", "x", key + "x", "weight_map", "a.b.weight"))] = at.pop(key)
        elif kind == 3:
            *others, last = rng.choice(paths)
            source = value
            with contextlib.suppress(KeyError, IndexError, TypeError):
                for step in others:
                    source = source[step]
                at[key] = copy.deepcopy(source[last])
        else:
            at[key] = copy.deepcopy(rng.choice(ODD))
    return value


def damaged_bytes(data, rng, end=None):
    """Flip, cut, double or move bytes of the first ``end``."""
    data, end = bytearray(data), min(end or len(data), len(data))
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(max(1, end))
        kind = rng.randrange(6)
        if kind < 3 and data:
            data[min(at, len(data) - 1)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 3:
            word = rng.choice((0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1, rng.randrange(99)))
            data[at : at + 8] = struct.pack("<Q", word)
        elif kind == 4:
            del data[at : at + rng.choice((1, 7, 100, len(data)))]
        else:
            data[at:at] = data[at : at + rng.choice((1, 8, 64))]
    return bytes(data)


def damaged_safetensors(data, rng):
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3:
        return damaged_bytes(data, rng, 8 + length)
    text = json.dumps(damaged_value(json.loads(data[8 : 8 + length]), rng)).encode()
    if rng.random() < 0.2:
        text = damaged_bytes(text, rng)
    stated = rng.choice((0, 7, 2**40, 2**63)) if rng.random() < 0.1 else len(text)
    return stated.to_bytes(8, "little") + text + data[8 + length :]


def other_tensors(data, rng):
    """A well-formed file with other tensors: values, dtypes, shapes, names."""
    tensors = load(data)
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(sorted(tensors))
        old = torch.empty(tensors[name].shape, dtype=tensors[name].dtype).copy_(tensors[name])
        raw = old.reshape(-1).view(torch.uint8) if old.numel() else old
        change = rng.randrange(7)
        if change == 0:
            new = old.to(rng.choice(sorted(DTYPES.values(), key=str)))
        elif change == 1:
            new = torch.tensor(rng.choice((0, 1, -1, 2**31 - 1, float("nan"), float("inf"), 1e-45)))
            new = new.to(old.dtype).expand(old.shape)
        elif change == 2:
            random_bytes = bytes(rng.randrange(256) for _ in range(min(raw.numel(), 4096)))
            new = torch.frombuffer(bytearray(random_bytes), dtype=torch.uint8)
            new = new.repeat(-(-raw.numel() // len(new)))[: raw.numel()] if len(new) else raw
            new = new.view(old.dtype).reshape(old.shape) if old.numel() else old
        elif change == 3:
            new = (
                old.reshape(rng.choice(((-1,), (1, -1), (-1, 1), (1, 1, -1))))
                if raw.numel()
                else old
            )
        elif change == 4:
            new = old[: rng.randrange(len(old) + 1)] if old.dim() else old.reshape(1)
        elif change == 5:
            new = torch.cat([old, old]) if old.dim() else old
        else:
            new = tensors.pop(name)
            name = rng.choice(("x", name + ".x", name.replace("0", "1"), name.replace("_proj", "")))
        tensors[name] = new.contiguous().clone()
    return save(tensors)


def damaged(folder, rng):
    """Change a file of the folder; returns its name."""
    files = sorted(folder.iterdir())
    texts = [file for file in files if file.suffix == ".json"]
    file = rng.choice(files + texts)
    data = file.read_bytes()
    if file.suffix == ".json":
        quantization = "quantization_config"
        value = json.loads(data)
        if quantization in value and rng.random() < 0.7:
            value[quantization] = damaged_value(value[quantization], rng)
        else:
            value = damaged_value(value, rng)
        data = json.dumps(value).encode()
        data = damaged_bytes(data, rng) if rng.random() < 0.15 else data
    elif file.suffix == ".gguf":
        data = damaged_bytes(data, rng, 3000)
    elif rng.random() < 0.4:
        data = other_tensors(data, rng)
    else:
        data = damaged_safetensors(data, rng)
    kind = rng.random()
    if kind < 0.01:
        file.unlink()
        file.symlink_to(rng.choice((folder / file.name, "/dev/zero", "/etc/passwd", "..", "x")))
    else:
        file.write_bytes(data)
    return file.name


# -- watching ------------------------------------------------------------------------------------

MEMORY = 3 * 2**30
"""Address space that reading a checkpoint of some 100 KB may add."""
SECONDS = 10
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "pickle.find_class", "subprocess.Popen")
FORBIDDEN += ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename")


class Broken(BaseException):
    """Reading did what it must not do. No `Exception`, so that no handler turns it into one."""


class _Guard:
    """An audit hook, which cannot be taken away again; it does nothing while ``folder`` is None."""

    folder: Path | None = None
    found: str | None = None

    def __call__(self, event, args):
        if self.folder is None:
            return
        if event in FORBIDDEN:
            self.found = f"{event} {args}"
        elif event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            place = os.path.realpath(os.fsdecode(args[0]))
            base = os.path.realpath(self.folder)
            good = (base, sys.prefix, sys.base_prefix, "/proc", "/sys", "/usr/lib", "/dev/null")
            source = place.endswith((".py", ".pyc", ".so"))
            if not source and not place.startswith(good):
                self.found = f"open {place}"


_guard = _Guard()
_guarded: list[_Guard] = []


def _late(*_):
    raise Broken(f"more than {SECONDS} seconds")


@contextlib.contextmanager
def watched(folder):
    """Raise `Broken` if what is inside does what reading a checkpoint must not do.

    Errors of qcore pass through.
    """
    if not _guarded:
        sys.addaudithook(_guard)
        _guarded.append(_guard)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    old = signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    _guard.folder, _guard.found = folder, None
    try:
        yield
    except QcoreError as error:
        str(error).encode()  # a message can be printed
        if len(str(error)) > 20_000:
            raise Broken(f"a message of {len(str(error))} characters") from error
        cause = error.__cause__
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            raise Broken("much memory") from error
        raise
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {str(error)[:300]}") from error
    finally:
        _guard.folder = None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)
        if _guard.found:
            raise Broken(_guard.found)


def read(folder):
    """Inspect and load; raises `Broken` if either misbehaves."""
    with contextlib.suppress(QcoreError), watched(folder):
        inspect_checkpoint(folder, target="cpu").render()
    with contextlib.suppress(QcoreError), watched(folder):
        load_model(folder, device="cpu")


def run(kind, seed, good, folder):
    """Damage a copy of the folder ``good`` and read it; returns what broke, or None."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    name = damaged(folder, random.Random(seed))
    try:
        read(folder)
    except Broken as broken:
        return f"{kind}, seed {seed!r}, {name}: {broken}"
    return None


def main():
    """Fuzz for some minutes, and print what broke."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kind", choices=KINDS, action="append")
    options = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    base = Path(tempfile.mkdtemp())
    kinds = options.kind or list(KINDS)
    for kind in kinds:
        KINDS[kind](base / kind)
        read(base / kind)
    end, count, broken = time.time() + 60 * options.minutes, 0, {}
    while time.time() < end:
        for kind in kinds:
            seed = f"{options.seed}-{count}"
            found = run(kind, seed, base / kind, base / "damaged")
            if found is not None:
                what = found.partition(": ")[2][:60]
                broken.setdefault(what, []).append(found)
                if len(broken[what]) <= 2:
                    print(found, flush=True)
            count += 1
    shutil.rmtree(base)
    print(f"{count} damaged checkpoints, {sum(map(len, broken.values()))} broke")
    for what, found in broken.items():
        print(f"{len(found):6} {what}")


if __name__ == "__main__":
    main()
