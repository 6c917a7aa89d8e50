"""Plugins made for one test: real entry points, no installation."""

import sys
import textwrap
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest


@pytest.fixture
def make_plugin(tmp_path, monkeypatch):
    """``make_plugin("name", source, distribution=...)`` gives an entry point to such a module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(name, source, distribution=None, version="1.0"):
        module = f"made_{name}_{len(made)}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        made.append(module)
        point = EntryPoint(name, module, "qcore.plugins")
        origin = SimpleNamespace(name=distribution or f"dist-{name}", version=version)
        return EntryPoint(point.name, point.value, point.group)._for(origin)

    yield make
    for module in made:
        sys.modules.pop(module, None)
