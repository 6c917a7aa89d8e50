"""What ``import qcore`` costs and gives."""

import subprocess
import sys

import pytest
import qcore


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_loads_nothing_heavy():
    loaded = run(
        "import torch, sys; before = set(sys.modules); import qcore; "
        "print(*sorted(set(sys.modules) - before))"
    ).split()
    assert all(name.startswith("qcore") for name in loaded)
    assert len(loaded) <= 3


def test_selection_does_not_load_models_or_vendor_libraries():
    loaded = run(
        "import sys, torch, qcore\n"
        "config = qcore.Int8ScaledMMLinearLayerConfig(False, True, True)\n"
        "qcore.select(config, 'cuda:sm_90'); qcore.get_registry()\n"
        "print(*sys.modules)"
    ).split()
    for name in ("transformers", "typer", "rich", "zentorch", "triton", "flashinfer", "aiter"):
        assert name not in loaded, name


@pytest.mark.parametrize(
    "name", [name for name in qcore.__all__ if name not in ("explain", "load_model")]
)
def test_every_public_name_exists(name):
    assert getattr(qcore, name) is not None


def test_the_typed_names_are_the_lazy_ones():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(qcore.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in block.body for alias in node.names}
    assert typed == set(qcore.__all__) - {"__version__"}


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = qcore.nonsense
