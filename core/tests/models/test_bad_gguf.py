"""A damaged, hostile or foreign GGUF file is refused by name, before a weight is read."""

from __future__ import annotations

import random
import struct

import checkpoint_writers as w
import pytest

pytest.importorskip("gguf", reason="the tests write files with it")

import gguf_writers as g
from qcore import errors
from qcore.models import inspect_checkpoint, load_model
from qcore.models import load as load_module
from qcore.models.gguf_file import read_gguf_header

U32, TEXT, ARRAY = 4, 8, 9
HUGE = 2**63


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return g.write_gguf(folder / "good.gguf", w.tiny_model(), ("Q4_0", "Q8_0")).read_bytes()


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """``refused(data, text)``: a `CheckpointError` with the text, before a weight is read."""

    def check(data, text):
        file = tmp_path / "bad.gguf"
        file.write_bytes(data)
        monkeypatch.setattr(
            load_module, "read_tensor", lambda info: pytest.fail("a weight was read")
        )
        for read in (load_model, inspect_checkpoint):
            with pytest.raises(errors.CheckpointError, match=text) as caught:
                read(file, **({"device": "cpu"} if read is load_model else {}))
            assert "bad.gguf" in str(caught.value)

    return check


def weight(name="token_embd.weight", dims=(32, 4), kind=0, offset=0):
    return g.tensor(name, dims, kind, offset)


BYTES = {
    "empty": (b"", "no GGUF file, or cut short: it has 0 bytes"),
    "magic": (g.container(magic=b"GGML"), "no GGUF file"),
    "version 1": (g.container(version=1), "GGUF version 1; versions 2 and 3 are read"),
    "big-endian": (g.container(version=3 << 24), "big-endian"),
    "counts": (g.container(counts=(HUGE, 0)), "cut short or damaged: .* tensors"),
    "pairs": (g.container(counts=(0, HUGE)), "cut short or damaged: .* metadata pairs"),
    "long key": (g.container([struct.pack("<Q", HUGE) + b"x" * 40]), "a metadata key would take"),
    "key of no text": (
        g.container([g.pair(b"\xff" * 9, U32, b"1234")]),
        "a metadata key is no UTF-8",
    ),
    "key twice": (g.container([g.pair("a", U32, b"1234")] * 2), "has 'a' twice"),
    "unknown value": (g.container([g.pair("abc", 99, b"1234")]), "'abc' has type 99"),
    "long array": (
        g.container([g.pair("abc", ARRAY, struct.pack("<IQ", U32, HUGE))]),
        "'abc' would take",
    ),
    "long array of strings": (
        g.container([g.pair("abc", ARRAY, struct.pack("<IQ", TEXT, HUGE))]),
        "'abc' would take",
    ),
    "array of arrays": (
        g.container([g.pair("abc", ARRAY, struct.pack("<IQ", ARRAY, 1))]),
        "array of type 9",
    ),
    "alignment": (
        g.container([g.pair("general.alignment", U32, struct.pack("<I", 24))]),
        "general.alignment is 24",
    ),
    "alignment 0": (
        g.container([g.pair("general.alignment", U32, struct.pack("<I", 0))]),
        "general.alignment is 0",
    ),
    "no dimensions": (g.container([], [weight(dims=())]), "has 0 dimensions"),
    "many dimensions": (g.container([], [weight(dims=(1,) * 9)]), "has 9 dimensions"),
    "no elements": (g.container([], [weight(dims=(0, 4))]), r"has shape \[4, 0\]"),
    "too many elements": (g.container([], [weight(dims=(HUGE, HUGE))]), "has shape"),
    "unknown type": (
        g.container([], [weight(kind=200)]),
        "'token_embd.weight' has type 200, which is not supported; F32, .*Q4_K",
    ),
    "known but not read": (g.container([], [weight(kind=16)]), r"type 16 \(IQ2_XXS\)"),
    "part of a block": (g.container([], [weight(dims=(48, 4), kind=8)]), "rows of 48 values"),
    "beyond the file": (g.container([], [weight(offset=4096)]), "would end at byte"),
    "far beyond": (g.container([], [weight(offset=HUGE)]), "would end at byte"),
    "not aligned": (
        g.container([], [weight(offset=8)], b"0" * 4096),
        "its offset 8 is not aligned",
    ),
    "overlap": (
        g.container([], [weight(), weight("output_norm.weight", offset=32)], b"0" * 4096),
        "overlaps another",
    ),
    "twice": (g.container([], [weight(), weight(offset=512)], b"0" * 4096), "is there twice"),
    "no architecture": (g.container([], [weight()], b"0" * 512), "lacks 'general.architecture'"),
    "unknown architecture": (
        g.container(
            [g.pair("general.architecture", TEXT, g.text("mamba"))], [weight()], b"0" * 512
        ),
        "the architecture 'mamba' is not supported; gemma2, gemma3, llama, qwen2, qwen3 are",
    ),
    "no sizes": (
        g.container(
            [g.pair("general.architecture", TEXT, g.text("llama"))], [weight()], b"0" * 512
        ),
        "lacks 'llama.attention.head_count'",
    ),
}


@pytest.mark.parametrize("name", BYTES)
def test_by_the_byte(name, refused):
    data, text = BYTES[name]
    refused(data, text)


def swap(old, new):
    """Replace bytes by as many others."""
    old, new = (x.encode() if isinstance(x, str) else x for x in (old, new))
    assert len(old) == len(new)

    def change(data):
        assert old in data
        return data.replace(old, new)

    return change


def value(key, number):
    """Change an unsigned integer of the metadata."""

    def change(data):
        at = data.index(g.text(key)) + len(g.text(key)) + 4
        return data[:at] + struct.pack("<I", number) + data[at + 4 :]

    return change


EDITS = {
    "renamed": (
        swap("blk.1.ffn_up.weight", "blk.1.ffn_xx.weight"),
        "'blk.1.ffn_xx.weight' is none",
    ),
    "another layer": (swap("blk.1.ffn_up.weight", "blk.7.ffn_up.weight"), "tensors of 3, the last"),
    "missing": (swap("output_norm.weight", "blk.1.attn_q.bias2"), "is none of the architecture"),
    "layers": (value("llama.block_count", 3), "says 3 layers, and there are tensors of 2"),
    "very many layers": (value("llama.block_count", 2**24 - 1), "says 16777215 layers"),
    "no layers": (value("llama.block_count", 0), "llama.block_count is 0"),
    "heads": (
        value("llama.attention.head_count", 5),
        "attn_q.weight has 64 rows, .* says 5 heads",
    ),
    "kv heads": (value("llama.attention.head_count_kv", 3), "attn_k.weight has 32 rows, .* says 3"),
    "key length": (
        value("llama.attention.key_length", 2**20),
        "attn_q.weight has 64 rows, .* 4 heads of 1048576",
    ),
    "hidden": (value("llama.embedding_length", 2**23), "token_embd.weight has shape"),
    "norm in blocks": (
        swap(
            g.tensor("output_norm.weight", (64,), 0, 0)[:-8],
            g.tensor("output_norm.weight", (64,), 8, 0)[:-8],
        ),
        r"output_norm.weight \[64\] is in Q8_0 blocks; only matrices",
    ),
    "intermediate": (value("llama.feed_forward_length", 97), "ffn_up.weight has shape"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited(name, good, refused):
    change, text = EDITS[name]
    refused(change(good), text)


@pytest.mark.parametrize(
    ("key", "entry", "text"),
    [
        ("llama.expert_count", 8, "mixtures of experts"),
        ("llama.rope.dimension_count", 8, "rope.dimension_count is 8 where a head has 16"),
        ("llama.attention.value_length", 32, "value_length is 32"),
        ("llama.rope.scaling.type", "longrope", "rotary scaling 'longrope'"),
    ],
)
def test_what_would_change_the_numbers(key, entry, text, tmp_path):
    name = key.removeprefix("llama.").replace(".", "__")
    file = g.write_gguf(tmp_path / "m.gguf", w.tiny_model(), **{name: entry})
    with pytest.raises(errors.UnsupportedQuantizationError, match=text):
        load_model(file, device="cpu")


def test_part_of_a_model(tmp_path):
    data = g.container([g.pair("split.count", U32, struct.pack("<I", 2))], [weight()], b"0" * 512)
    (tmp_path / "a-00001-of-00002.gguf").write_bytes(data)
    with pytest.raises(errors.CheckpointError, match=r"a-00002-of-00002.gguf: not there"):
        load_model(tmp_path / "a-00001-of-00002.gguf", device="cpu")
    (tmp_path / "a-00002-of-00002.gguf").write_bytes(data)
    with pytest.raises(errors.CheckpointError, match="does not say part 2 of 2"):
        load_model(tmp_path / "a-00001-of-00002.gguf", device="cpu")
    with pytest.raises(errors.CheckpointError, match=r"give the first, a-00001-of-00002.gguf"):
        load_model(tmp_path / "a-00002-of-00002.gguf", device="cpu")
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(errors.CheckpointError, match=r"but not called name-00001-of-00002.gguf"):
        load_model(tmp_path / "a.gguf", device="cpu")


def test_cut_short_anywhere(good, refused):
    random.seed(0)
    for length in (1, 23, 24, 100, len(good) - 1, *random.sample(range(len(good)), 40)):
        refused(good[:length], "cut short|no GGUF file")


def test_any_damaged_header_gives_an_error_of_qcore_or_loads(good, tmp_path):
    """Whatever is in the file: a typed error or a header, in no time and little memory."""
    (tmp_path / "good.gguf").write_bytes(good)
    start = min(entry.offset for entry in read_gguf_header(tmp_path / "good.gguf").tensors.values())
    file, rng, failed = tmp_path / "bad.gguf", random.Random(0), 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(start)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        file.write_bytes(data)
        try:
            inspect_checkpoint(file)
        except errors.QcoreError:
            failed += 1
    assert failed > 200
    for _ in range(30):
        data = bytearray(good)
        data[rng.randrange(start)] = rng.randrange(256)
        file.write_bytes(data)
        try:
            load_model(file, device="cpu")
        except errors.QcoreError:
            failed += 1


def test_a_file_that_shrinks_while_it_is_loaded(good, tmp_path, monkeypatch):
    file = tmp_path / "m.gguf"
    file.write_bytes(good)
    real = load_module.build_skeleton

    def shrink(*args):
        file.write_bytes(good[: len(good) // 2])
        return real(*args)

    monkeypatch.setattr(load_module, "build_skeleton", shrink)
    with pytest.raises(errors.CheckpointError, match="became shorter"):
        load_model(file, device="cpu")
