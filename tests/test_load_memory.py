"""Loading holds the result, one layer in float, and what rounding works on: no more."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists() or sys.platform != "linux",
    reason="only Linux says how much memory a process has allocated",
)

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "load_memory.py"
SIZES = {
    "vocab_size": 256,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
LAYER = 1024 * 4096
"""Elements of the largest layer; a model of 12 such, and some smaller."""

WORK = 12 * 4 * 2**17
"""Rounding takes 2**17 elements at a time (`qcore.quantize.rounding`), in float32, and holds no
more than 12 tensors of that size."""

NOISE = 4 * 2**20
"""Python's own objects: the modules of the model, headers, threads."""


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("load_memory", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARK.parent))


@pytest.fixture(scope="module")
def folder(benchmark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    benchmark.write(folder / "tiny", benchmark.TINY)
    benchmark.write(folder / "large", SIZES)
    return folder


@pytest.mark.parametrize(
    ("options", "packed"),
    [
        ({"dtype": "float32"}, 0),
        ({"dtype": "bfloat16", "quantize": "int4-g128"}, LAYER // 2),
        ({"dtype": "bfloat16", "quantize": "fp8-block"}, LAYER),
        ({"dtype": "bfloat16", "quantize": "nvfp4", "search": False}, LAYER // 2),
    ],
)
def test_no_more_than_a_layer_beyond_the_result(benchmark, folder, options, packed):
    variables = {**benchmark.GIVE_BACK, "OMP_NUM_THREADS": "1"}
    found = benchmark.watch(folder / "tiny", folder / "large", options, variables)
    assert found["samples"] > 20
    float_layer = 2 * LAYER  # bfloat16 in the file
    assert found["model"] > 12 * packed
    assert found["beyond"] <= float_layer + packed + WORK + NOISE
