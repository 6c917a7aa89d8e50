"""``qcore explain``: which kernel runs a layer, and why each of the others does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["explain"]


def explain(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="A checkpoint: explain every kind of layer in it.",
            metavar="[CHECKPOINT]",
            show_default=False,
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Of a CHECKPOINT: round the layers to this scheme, as at load (see 'qcore "
            "quantize --help').",
            metavar="SCHEME",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="For this machine instead of the one here: 'cuda:sm_100', 'cpu:avx512_vnni'.",
            metavar="TARGET",
        ),
    ] = None,
    exhaustive: Annotated[
        bool, typer.Option("--all", help="Ask the kernels after the chosen one, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    kernel_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="mp (packed integers), int8, fp8, fp8_block, nvfp4, mxfp4, mxfp8, gguf, "
            "codebook (NF4, HQQ).",
            metavar="TYPE",
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Inputs by outputs, KxN.  [default: 4096x4096]",
            metavar="KxN",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the activations: bfloat16, float16, float32.  [default: bfloat16]",
            metavar="DTYPE",
        ),
    ] = None,
    weight_type: Annotated[
        str | None,
        typer.Option(
            help="mp: uint4b8, uint8b128, ...; uint4 with zero points.  [default: uint4b8]; "
            "gguf: Q4_0, Q6_K, ...  [default: Q4_K]",
            metavar="TYPE",
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            help="mp: inputs that share a scale; -1 for all of them.  [default: 128]",
            metavar="N",
        ),
    ] = None,
    zero_points: Annotated[
        bool | None,
        typer.Option(
            "--zero-points",
            help="mp: with zero points (AWQ).",
        ),
    ] = None,
    g_idx: Annotated[
        bool | None,
        typer.Option(
            "--g-idx",
            help="mp: with activation order (GPTQ).",
        ),
    ] = None,
    static: Annotated[
        bool | None,
        typer.Option(
            "--static/--dynamic",
            help="int8: the scale of activations is known, or made at run time.  "
            "[default: dynamic]",
            show_default=False,
        ),
    ] = None,
    tensor: Annotated[
        bool | None,
        typer.Option(
            "--tensor/--channel",
            help="int8: one weight scale, or one for each output.  [default: channel]",
            show_default=False,
        ),
    ] = None,
    asymmetric: Annotated[
        bool | None,
        typer.Option(
            "--asymmetric",
            help="int8: activations with a zero point.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="fp8: what shares a weight scale: channel, tensor, block.  [default: channel]",
            metavar="WHAT",
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            help="fp8: token, tensor, static-tensor, group; nvfp4, mxfp4, mxfp8: the formats' "
            "names; all: none, for weight-only.  [default: as is usual for the type]",
            metavar="HOW",
        ),
    ] = None,
) -> None:
    """Say which kernel runs a layer, and why each of the others does not.

    The layer is described by options, or every kind of layer of a CHECKPOINT is taken. The
    exit status is 1 if no kernel can run it.

    \b
    qcore explain --type mp --shape 4096x11008 --group-size 128
    qcore explain --type int8 --asymmetric --target cpu:avx512_vnni
    qcore explain --type fp8 --weights block --target cuda:sm_90 --all
    qcore explain path/to/checkpoint
    """
    from qcore.cli.layer_options import DESCRIBED, LayerOptions
    from qcore.cli.output import print_json, print_lines
    from qcore.selection import select

    options = LayerOptions(
        type=kernel_type or "mp",
        shape=shape or "4096x4096",
        dtype=dtype or "bfloat16",
        weight_type=weight_type,
        group_size=group_size,
        zero_points=zero_points,
        g_idx=g_idx,
        static=static,
        tensor=tensor,
        asymmetric=asymmetric,
        weights=weights,
        activations=activations,
    )
    if checkpoint is not None:
        named = {"--type": kernel_type, "--shape": shape, "--dtype": dtype}
        given = [name for name, value in named.items() if value is not None] + options.given()
        if given:
            raise typer.BadParameter(
                f"a checkpoint says what its layers are; {given[0]} describes another",
                param_hint="CHECKPOINT",
            )
        _explain_checkpoint(checkpoint, target, quantize, exhaustive, as_json)
        return
    if quantize is not None:
        raise typer.BadParameter("give the CHECKPOINT to round", param_hint="--quantize")
    if kernel_type is None:
        raise typer.BadParameter(
            f"give a CHECKPOINT, or describe a layer by its --type ({', '.join(DESCRIBED)}) and "
            "--shape",
            param_hint="CHECKPOINT or --type",
        )
    decision = select(options.config(), target, exhaustive=exhaustive)
    if as_json:
        print_json(decision.to_dict())
    else:
        print_lines(decision.render())
    if decision.chosen is None:
        raise typer.Exit(1)


def _explain_checkpoint(
    checkpoint: Path, target: str | None, quantize: str | None, exhaustive: bool, as_json: bool
) -> None:
    """Explain each kind of layer once."""
    from qcore.cli.output import heading, print_json, print_lines
    from qcore.models import inspect_checkpoint
    from qcore.selection import select

    report = inspect_checkpoint(checkpoint, target=target, quantize=quantize)
    kinds: dict[Any, list[str]] = {}
    decisions = {}
    for layer in report.layers:
        config = layer.decision.config
        kinds.setdefault(config, []).append(layer.layer)
        decisions[config] = layer.decision
    if exhaustive:
        decisions = {c: select(c, report.target, exhaustive=True) for c in decisions}
    if as_json:
        print_json([{"layers": names, **decisions[c].to_dict()} for c, names in kinds.items()])
    elif not kinds:
        print_lines(f"{checkpoint}: no layer is quantized, so there is nothing to choose")
    else:
        for index, (config, names) in enumerate(kinds.items()):
            patterns = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
            heading(f"{len(names)} x {patterns}", first=index == 0)
            print_lines(decisions[config].render())
    if any(decision.chosen is None for decision in decisions.values()):
        raise typer.Exit(1)
