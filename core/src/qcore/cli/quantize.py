"""``qcore quantize``: make a quantized checkpoint of a float one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["quantize"]


def quantize(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder with config.json and float safetensors.",
            metavar="SOURCE",
            show_default=False,
        ),
    ],
    dest: Annotated[
        Path, typer.Argument(help="The folder to make.", metavar="DEST", show_default=False)
    ],
    scheme: Annotated[
        str,
        typer.Option(
            help="What weights are rounded to: int4-g128, int4-g32, int4-channel, int4-asym-g128, "
            "int8-g128, int8-channel (weights only), int8 (weights and activations).",
            metavar="SCHEME",
        ),
    ] = "int4-g128",
    lm_head: Annotated[
        str | None,
        typer.Option(
            help="Quantize the layer that makes the logits too, to this scheme.", metavar="SCHEME"
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer to keep in float: its name, or 're:' and a regular expression. "
            "May be repeated.",
            metavar="NAME",
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(help="Choose scales by the squared error, or by the largest magnitude alone."),
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace DEST if it is a checkpoint already.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Round the linear layers of a checkpoint to integers, in a format of compressed-tensors.

    Weights are rounded to nearest, without calibration data. Tensors are read, rounded and
    written one at a time. DEST appears when it is complete.
    """
    from qcore.cli.output import print_json, print_lines
    from qcore.cli.progress import progress_bar
    from qcore.quantize import quantize_checkpoint

    with progress_bar("building the model", in_bytes=True) as progress:
        report = quantize_checkpoint(
            source,
            dest,
            scheme=scheme,
            lm_head_scheme=lm_head,
            ignore=ignore or (),
            search=search,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        print_lines(report.render())
