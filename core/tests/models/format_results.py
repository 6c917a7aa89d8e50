"""Keep what the tests of formats found out, for the tables of the docs.

``pytest core/tests/models --format-results FILE`` writes a row for each checkpoint that a test
loaded and found right: its format, its schemes, the layers that it became, the error and its bound.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from qcore.facts.quant_key import GroupShape
from qcore.facts.scalar_type import ScalarType
from qcore.layers import MMLinearLayerConfig
from qcore.layers.params import FLOAT_DTYPES
from qcore.models import explain, inspect_checkpoint

VARIANTS = ("format", "checkpoint_format", "packing_format", "quant_algo", "bnb_4bit_quant_type")
"""Fields of a ``quantization_config`` of which one says which of its layouts a method uses."""


class FormatResults:
    """The rows of one run of the tests."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        test: str,
        folder: Path,
        loaded: torch.nn.Module,
        error: float | None,
        bound: float | None,
        *,
        layer_error: float | None = None,
        layer_bound: float | None = None,
        tool: str | None = None,
    ) -> None:
        """Keep a row.

        Args:
            test: its id.
            folder: the checkpoint, a folder or a file.
            loaded: the model that it gave.
            error: of the logits, relative; None where they were not compared.
            bound: what the test allows.
            layer_error: the largest of a layer on its own input, where they were compared.
            layer_bound: what the test allows.
            tool: the distribution that wrote the checkpoint; None for the tests' own writers.
        """
        method, variant = format_of(folder)
        rows = inspect_checkpoint(folder).layers
        layers = [scheme_of(row.decision.config) for row in explain(loaded).rows]
        self.rows.append(
            {
                "test": test,
                "tool": tool,
                "version": importlib.metadata.version(tool) if tool else None,
                "format": method,
                "variant": variant,
                "schemes": list(dict.fromkeys(row.scheme for row in rows)),
                "layers": [layer for i, layer in enumerate(layers) if layer not in layers[:i]],
                "error": error,
                "bound": bound,
                "layer_error": layer_error,
                "layer_bound": layer_bound,
            }
        )

    def write(self, path: Path) -> None:
        """The rows, by test, and what ran them."""
        names = ("qcore", "torch", "transformers")
        versions = {name: importlib.metadata.version(name) for name in names}
        environment = {"python": platform.python_version(), **versions}
        rows = sorted(self.rows, key=lambda row: row["test"])
        lines = ",\n".join(json.dumps(row) for row in rows)
        text = f'{{"environment": {json.dumps(environment)},\n"rows": [\n{lines}\n]}}\n'
        path.write_text(text, encoding="utf-8")


def format_of(path: Path) -> tuple[str, str | None]:
    """The method that a checkpoint names, and which of its layouts."""
    if path.suffix == ".gguf":
        return "gguf", None
    config = json.loads((path / "config.json").read_text()).get("quantization_config")
    if config is None and (path / "quanto_qmap.json").exists():
        return "quanto", None
    if config is None and (path / "hf_quant_config.json").exists():
        config = json.loads((path / "hf_quant_config.json").read_text())["quantization"]
        config = {"quant_method": "modelopt", **config}
    kind = config.get("quant_type")
    named = [config[name] for name in VARIANTS if config.get(name)]
    if config.get("load_in_8bit"):
        named = ["int8"]
    if isinstance(kind, dict):
        named.append(kind["default"]["_type"])
    return config["quant_method"], named[0] if named else None


UNIMPORTANT = frozenset(
    [
        "full_weight_shape",
        "partition_weight_shape",
        "weight_shape",
        "num_experts",
        "hidden_size",
        "intermediate_size",
        "input_dtype",
        "out_dtype",
        "out_type",
    ]
)
"""Fields of a layer config that are the model's, not the format's: its sizes and its dtype."""


def scheme_of(config: MMLinearLayerConfig) -> dict[str, Any]:
    """What a format makes of every layer, as plain values from which configs can be made."""
    scheme = {k: v for k, v in encode(config).items() if k not in UNIMPORTANT}
    if getattr(config, "act_type", None) in FLOAT_DTYPES:
        del scheme["act_type"]
    return scheme


def encode(value: object) -> Any:
    """Plain values; a class's name where there is one."""
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, ScalarType):
        return {"class": "ScalarType", "name": str(value)}
    if isinstance(value, GroupShape):
        return {"class": "GroupShape", "row": value.row, "col": value.col}
    if is_dataclass(value):
        parts = {item.name: encode(getattr(value, item.name)) for item in fields(value)}
        return {"class": type(value).__name__, **parts}
    return list(value) if isinstance(value, tuple) else value
