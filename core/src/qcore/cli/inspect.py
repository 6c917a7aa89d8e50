"""``qcore inspect``: what a checkpoint holds, and which kernels would run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["inspect"]


def inspect(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A folder with config.json and safetensors, or a GGUF file.",
            metavar="CHECKPOINT",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(help="For this machine instead of the one here.", metavar="TARGET"),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Round the layers of a float checkpoint to this scheme, as at load (see 'qcore "
            "quantize --help').",
            metavar="SCHEME",
        ),
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Give each layer a line of its own.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint holds: its format, its layers, and the kernel of each.

    Only the config and the headers of the weight files are read: it takes a moment, whatever the
    size of the checkpoint, and no memory.
    """
    from qcore.cli.output import print_json, print_lines
    from qcore.models import inspect_checkpoint

    report = inspect_checkpoint(checkpoint, target=target, quantize=quantize)
    if as_json:
        print_json(report.to_dict())
    else:
        print_lines(report.render(per_layer=per_layer))
