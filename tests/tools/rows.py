"""A row of ``docs/data/tool-checkpoints.json``: what a tool wrote, and what qcore makes of it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import qcore
import tiny
import torch
from qcore.models import inspect_checkpoint

JSON = Path(__file__).resolve().parents[2] / "docs" / "data" / "tool-checkpoints.json"
WEIGHT_ONLY_BOUND = 1e-4
EDGE = 0.01
"""Of the error that rounding inputs makes: two that round alike differ by less, in the few inputs
that lie at the edge between two codes. Where none does, they agree to float32 rounding."""


class NotWrittenError(Exception):
    """The tool cannot write this here; the text says why, in its own words."""


@dataclass
class Made:
    """What a tool made of the model.

    Attributes:
        weights: the value of each quantized weight [N, K], float32, by layer name; by the tool's
            own code or by what the row says, not by qcore's.
        compared_with: who computed them, and who rounded inputs.
        forward: a float32 model whose layers round their inputs; None for weight-only.
        same_rounding: whether qcore states to round as that model does.
        others: parameters that the tool has changed too, by name.
    """

    weights: Mapping[str, torch.Tensor]
    compared_with: str
    forward: Any = None
    same_rounding: bool = True
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Case:
    """A way to make a checkpoint.

    Attributes:
        tool: the package.
        format: of the files.
        scheme: the tool's name for it.
        export: how it is made, in a line.
        make: writes it into a folder.
        named: a part of what `qcore inspect` must call it.
        refused: a part of the refusal that is expected; None where it is to load.
    """

    tool: str
    format: str
    scheme: str
    export: str
    make: Callable[[Path], Made | None]
    named: str = ""
    refused: str | None = None


@dataclass
class Row:
    """See the script's docstring."""

    tool: str
    version: str
    format: str
    scheme: str
    export: str
    loads: bool = False
    refusal: str | None = None
    not_written: str | None = None
    layer_types: list[str] = field(default_factory=list)
    inspect: str | None = None
    relative_error: float | None = None
    bound: float | None = None
    layer_error: float | None = None
    layer_bound: float | None = None
    compared_with: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.tool, self.format, self.scheme


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def verify(case: Case) -> tuple[Row, list[str]]:
    """Make the checkpoint, load it, compare; the row and what is wrong."""
    version = importlib.metadata.version(case.tool)
    row = Row(case.tool, version, case.format, case.scheme, case.export)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoint"
        try:
            made = case.make(folder)
        except NotWrittenError as error:
            row.not_written = one_line(error)
            return row, []
        except Exception as error:
            traceback.print_exc()
            return row, [f"not written: {type(error).__name__}: {one_line(error)}"]
        try:
            return row, _compare(case, row, folder, made)
        except Exception as error:
            traceback.print_exc()
            return row, [f"not compared: {type(error).__name__}: {one_line(error)}"]


def _compare(case: Case, row: Row, folder: Path, made: Made | None) -> list[str]:
    torch.set_float32_matmul_precision("highest")  # some tools lower it when they are imported
    try:
        report = inspect_checkpoint(folder)
        schemes = dict.fromkeys(layer.scheme for layer in report.layers)
        row.inspect = "; ".join(schemes) or report.description
        loaded = qcore.load_model(folder, device="cpu", dtype=torch.float32)
    except qcore.QcoreError as error:
        row.refusal = one_line(error).replace(str(folder), "CHECKPOINT")
        if case.refused is not None and case.refused in row.refusal:
            return []
        return [f"refused: {row.refusal}"]
    if case.refused is not None:
        return [f"loads, but should be refused with {case.refused!r}"]
    assert made is not None
    wrong = []
    row.loads = True
    row.compared_with = made.compared_with
    types = [r.decision.config.kernel_type for r in qcore.explain(loaded).rows]
    row.layer_types = sorted(set(types))
    if len(types) != len(made.weights):
        wrong.append(f"{len(types)} quantized layers; the tool has {len(made.weights)}")
    if report.layers and len(report.layers) != len(types):
        wrong.append(f"inspect shows {len(report.layers)} of {len(types)} layers")
    if case.named not in (row.inspect or ""):
        wrong.append(f"inspect says {row.inspect!r}, not {case.named!r}")
    plain_model = tiny.with_weights(made.weights, made.others)
    plain, got = tiny.logits(plain_model), tiny.logits(loaded)
    row.bound, wanted = WEIGHT_ONLY_BOUND, plain
    if made.forward is not None:
        wanted = tiny.logits(made.forward)
        # What rounding inputs does to the logits: two models that round alike differ by less,
        # as some inputs lie at the edge between two codes.
        row.bound = tiny.relative_error(wanted, plain)
        row.layer_error = tiny.worst_layer(loaded, made.forward)
        rounding = tiny.worst_layer(plain_model, made.forward)
        row.layer_bound = EDGE * rounding
        if not made.same_rounding:
            # Two errors of about the same size, independent at the most.
            row.layer_bound = 1.5 * rounding
            row.bound *= 1.5
        if not row.layer_error < row.layer_bound:
            wrong.append(f"a layer is off by {row.layer_error:.2e} ({row.layer_bound:.2e})")
    row.relative_error = tiny.relative_error(got, wanted)
    if not row.relative_error < row.bound:
        wrong.append(f"logits are off by {row.relative_error:.2e} ({row.bound:.2e})")
    return wrong


def merge(rows: list[Row], tools: set[str], path: Path = JSON) -> None:
    """Put the rows in place of those with the same key; keep all other rows."""
    kept: list[dict[str, Any]] = []
    environment: dict[str, Any] = {}
    if path.is_file():
        stored = json.loads(path.read_text())
        kept, environment = stored["rows"], stored["environment"]
    new = {row.key for row in rows}
    kept = [r for r in kept if (r["tool"], r["format"], r["scheme"]) not in new]
    every = sorted([*kept, *map(_plain, rows)], key=lambda r: (r["tool"], r["format"], r["scheme"]))
    environment |= {
        "model": "Llama, 2 layers, hidden 256, intermediate 512, random weights",
        "device": "cpu",
        "python": platform.python_version(),
        "qcore": qcore.__version__,
    }
    versions = environment.setdefault("versions", {})
    for tool in tools:
        with_it = {n: importlib.metadata.version(n) for n in ("torch", "transformers")}
        versions[f"{tool} {importlib.metadata.version(tool)}"] = with_it
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"rows": every, "environment": environment}, indent=1, sort_keys=False)
    path.write_text(f"{text}\n")


def _plain(row: Row) -> dict[str, Any]:
    values = asdict(row)
    for name, value in values.items():
        if isinstance(value, float):
            values[name] = float(f"{value:.3g}")
    return values
