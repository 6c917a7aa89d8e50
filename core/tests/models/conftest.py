from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs qcore[models]")
pytest.importorskip("safetensors", reason="the tests write checkpoints with it")
sys.path.insert(0, str(Path(__file__).parent))

import checkpoint_writers as w
from format_results import FormatResults


@pytest.fixture
def gptq_folder(tmp_path):
    """(folder, float model with the same weights) of a tiny symmetric GPTQ Llama."""
    model = w.tiny_model()
    tensors = w.quantize_model(model, w.gptq_tensors)
    return w.write_folder(tmp_path / "gptq", model, tensors, w.gptq_config()), model


@pytest.fixture(scope="session")
def _format_results(request):
    results = FormatResults()
    yield results
    if path := request.config.getoption("--format-results"):
        results.write(Path(path))


@pytest.fixture
def format_result(request, _format_results):
    """Call it with what `FormatResults.add` takes after the test's id, once all is found right."""
    wanted = request.config.getoption("--format-results")

    def keep(*row, **more):
        if wanted:
            _format_results.add(request.node.nodeid, *row, **more)

    return keep
