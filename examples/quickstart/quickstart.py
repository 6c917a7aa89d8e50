"""Quantize Gemma 3 270M once, generate with qcore's CPU kernels, and show what it cost."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import qcore
import torch
import transformers
from gemma import float_checkpoint, terms
from measure import generate, perplexity, weight_bytes
from qcore.quantize import quantize_checkpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).parent

console = Console(width=None if os.isatty(1) else 100, highlight=False)


def main() -> None:
    """Run the four steps."""
    args = _arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    cache = Path(os.environ.get("QCORE_CACHE", Path.home() / ".cache" / "qcore"))
    console.print(terms(), soft_wrap=True)

    console.print(f"[2/4] Getting Gemma 3 270M into {cache} (once; a minute or two)")
    source = float_checkpoint(cache / "gemma-3-270m")
    console.print(f"[3/4] Quantizing the weights to {args.scheme} (once)")
    quantized = _quantize(source, cache / f"gemma-3-270m-{args.scheme}", args.scheme)
    console.print(f"[4/4] Generating {args.max_new_tokens} tokens with each model")
    text = (HERE / "text.txt").read_text(encoding="utf-8")
    tokenizer = transformers.AutoTokenizer.from_pretrained(quantized)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()
        rows.append(_measure("unquantized", model, tokenizer, args, text))
        del model
        model = qcore.load_model(quantized, dtype=dtype)
        rows.append(_measure("qcore", model, tokenizer, args, text))

    console.print("\nWhich kernel runs each layer, and why:")
    console.print(str(qcore.explain(model)), soft_wrap=True)
    console.print(_table(rows))
    console.print("The quantized model writes:")
    console.print(rows[-1]["text"], style="italic", soft_wrap=True)
    if args.json:
        _save(Path(args.json), args.scheme, rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="The lighthouse keeper opened the door and")
    parser.add_argument(
        "--scheme", default="int8-g128", help="int8-g128 (default), int4-asym-g32, int8, ..."
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE as well")
    return parser.parse_args()


def _quantize(source: Path, dest: Path, scheme: str) -> Path:
    if dest.exists():
        return dest
    bar = Progress(
        TextColumn("  {task.description:<48}"), BarColumn(), TimeElapsedColumn(), console=console
    )
    with bar:
        task = bar.add_task("", total=None)

        def progress(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name[-48:])

        report = quantize_checkpoint(
            source,
            dest,
            scheme=scheme,
            # Tied to the embedding, the head holds two thirds of this model's weights, and four
            # bits of it would cost more than they save.
            lm_head=True,
            lm_head_scheme="int8-g128",
            progress=progress,
        )
    console.print(str(report), soft_wrap=True)
    return dest


def _measure(
    name: str, model: Any, tokenizer: Any, args: argparse.Namespace, text: str
) -> dict[str, Any]:
    dtype = str(model.dtype).removeprefix("torch.")
    with console.status(f"{name} {dtype}: perplexity and speed"):
        start = time.perf_counter()
        speed = generate(model, tokenizer, args.prompt, args.max_new_tokens)
        return {
            "model": name,
            "dtype": dtype,
            "weight_bytes": weight_bytes(model),
            "tokens_per_second": speed.decode_per_second,
            "perplexity": perplexity(model, tokenizer, text),
            "text": speed.text,
            "seconds": time.perf_counter() - start,
        }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Gemma 3 270M on this CPU", title_justify="left")
    for heading, justify in (
        ("model", "left"),
        ("activations", "left"),
        ("weights", "right"),
        ("tokens/s", "right"),
        ("speed-up", "right"),
        ("perplexity", "right"),
        ("change", "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        # Like against like: the unquantized model with the same activations.
        base = next(r for r in rows if r["dtype"] == row["dtype"])
        table.add_row(
            row["model"],
            row["dtype"],
            f"{row['weight_bytes'] / 1e6:.0f} MB",
            f"{row['tokens_per_second']:.1f}",
            f"{row['tokens_per_second'] / base['tokens_per_second']:.2f}x",
            f"{row['perplexity']:.3f}",
            f"{100 * (row['perplexity'] / base['perplexity'] - 1):+.2f} %",
        )
    return table


def _save(path: Path, scheme: str, rows: list[dict[str, Any]]) -> None:
    report = {
        "environment": {
            "cpu": qcore.Target.current("cpu").describe(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "qcore": qcore.__version__,
        },
        "scheme": scheme,
        "rows": rows,
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
