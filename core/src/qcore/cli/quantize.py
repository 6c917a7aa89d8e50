"""``qcore quantize``: make a quantized checkpoint of a float one."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qcore.quantize import ActivationScales

__all__ = ["quantize"]


class Observer(str, Enum):
    """How a scale is made of what is seen."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"


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
            help="What weights and activations are rounded to. Weights only: int4-g128, int4-g32, "
            "int4-channel, int4-asym-g128, int2-g32, int8-g128, int8-channel, fp8-weight-only, "
            "fp8-tensor-weight-only, fp8-block-weight-only, mxfp8-weight-only, mxfp4-weight-only, "
            "nvfp4-weight-only. Activations too: int8, fp8, fp8-tensor, fp8-block, mxfp8, mxfp4. "
            "With --calibrate: int8-static, int8-static-asym, fp8-static, nvfp4.",
            metavar="SCHEME",
        ),
    ] = "int4-g128",
    lm_head: Annotated[
        str | None,
        typer.Option(
            help="Quantize the layer that makes the logits too, to this scheme.", metavar="SCHEME"
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="A layer to quantize, and no other: its name, or 're:' and a regular expression. "
            "May be repeated.",
            metavar="NAME",
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
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="A text file: run the float model on it and take the scales of activations from "
            "what is seen.",
            metavar="TEXTFILE",
        ),
    ] = None,
    observer: Annotated[
        Observer,
        typer.Option(
            help="How a scale is made of what is seen: all of it, most of it, or the "
            "part with the least squared error."
        ),
    ] = Observer.MINMAX,
    percentile: Annotated[
        float, typer.Option(help="For the observer of that name, in percent.")
    ] = 99.9,
    sequences: Annotated[
        int, typer.Option(help="Calibrate with so many sequences at most.", min=1)
    ] = 128,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a sequence.", min=1)] = 512,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace DEST if it is a checkpoint already.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Round the linear layers of a checkpoint, into a format of compressed-tensors.

    Weights are rounded to nearest. Tensors are read, rounded and written one at a time. DEST
    appears when it is complete.

    \b
    qcore quantize path/to/model path/to/model-int4 --scheme int4-g128
    qcore quantize path/to/model path/to/model-fp8 --scheme fp8 --lm-head fp8
    qcore quantize path/to/model to/int8 --scheme int8-static --calibrate a.txt
    """
    from qcore.cli.output import print_json, print_lines
    from qcore.cli.progress import progress_bar
    from qcore.quantize import quantize_checkpoint

    scales = None
    if calibrate is not None:
        scales = _calibrate(
            source, calibrate, scheme, observer, percentile, sequences, sequence_length
        )
    with progress_bar("building the model", in_bytes=True) as progress:
        report = quantize_checkpoint(
            source,
            dest,
            scheme=scheme,
            lm_head_scheme=lm_head,
            targets=targets or (),
            ignore=ignore or (),
            search=search,
            scales=scales,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        print_lines(report.render())


def _calibrate(
    source: Path,
    text: Path,
    scheme: str,
    observer: Observer,
    percentile: float,
    sequences: int,
    sequence_length: int,
) -> ActivationScales:
    from qcore.cli.progress import progress_bar
    from qcore.errors import ConfigError
    from qcore.quantize import calibrate

    try:
        data = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{text}: it is no text in UTF-8: {error}") from None
    with progress_bar("loading the model") as progress:
        return calibrate(
            source,
            data,
            scheme=scheme,
            observer=observer.value,
            percentile=percentile,
            max_sequences=sequences,
            sequence_length=sequence_length,
            progress=progress,
        )
