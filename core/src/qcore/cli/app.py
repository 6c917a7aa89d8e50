"""The application: its commands, the options before them, and what becomes of an error."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qcore.cli import doctor, explain, generate, inspect, kernels, quantize
from qcore.errors import QcoreError

__all__ = ["app"]


class _Commands(TyperGroup):
    """The group of all commands. Turns an expected error into a paragraph and exit status 1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take ``--debug`` wherever it stands; the rest is as usual."""
        ours = args[: args.index("--")] if "--" in args else args
        ctx.obj = "--debug" in ours
        rest = [text for text in ours if text != "--debug"]
        parsed: list[str] = super().parse_args(ctx, rest + args[len(ours) :])
        return parsed

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the class."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read our output has gone; that is handled further out
        except (QcoreError, OSError) as error:
            if ctx.obj:
                traceback.print_exc()
            print(f"error: {_words(error)}", file=sys.stderr)
            raise typer.Exit(1) from None


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, QcoreError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from qcore import __version__

        print(f"qcore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, too.")
    ] = False,
) -> None:
    """Which kernel runs each quantized linear layer, here, and why.

    \b
    qcore explain --type mp --shape 4096x11008 --target cuda:sm_90
    qcore quantize path/to/model path/to/model-int4 --scheme int4-g128
    qcore generate path/to/model-int4 --prompt "Once upon a time"
    """
    # Selection logs the notes that the commands print anyway.
    logging.getLogger("qcore").addHandler(logging.NullHandler())


for _name, _function, _line in (
    ("doctor", doctor.doctor, "This machine, the plugins, and what is wrong with them."),
    ("kernels", kernels.kernels, "The kernels that are installed."),
    ("explain", explain.explain, "Which kernel runs a layer, and why no other."),
    ("inspect", inspect.inspect, "What a checkpoint holds, and what would run it."),
    ("quantize", quantize.quantize, "Make a quantized checkpoint of a float one."),
    ("generate", generate.generate, "Run a checkpoint: text, speed, memory, kernels."),
):
    app.command(_name, short_help=_line)(_function)
