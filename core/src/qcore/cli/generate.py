"""``qcore generate``: run a checkpoint, and say how fast and on which kernels."""

from __future__ import annotations

import sys
import time
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

__all__ = ["generate"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


class KVCache(str, Enum):
    """How keys and values are kept."""

    MODEL = "model"
    FP8 = "fp8"
    FP8_DYNAMIC = "fp8-dynamic"


def generate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A folder with config.json, safetensors and a tokenizer, or a GGUF file.",
            metavar="CHECKPOINT",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str, typer.Option(help="What the text begins with.", metavar="TEXT", show_default=False)
    ],
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many.", min=1)] = 64,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")
    ] = False,
    temperature: Annotated[
        float,
        typer.Option(help="Sample, with this temperature; 0 takes the likeliest token.", min=0.0),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of activations and of layers that are not quantized: bfloat16, float16, "
            "float32.  [default: the checkpoint's]",
            metavar="DTYPE",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="As torch names it: cpu, cuda:0.  [default: an accelerator, else cpu]",
            metavar="DEVICE",
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Round the layers of a float checkpoint to this scheme at load (see 'qcore "
            "quantize --help').",
            metavar="SCHEME",
        ),
    ] = None,
    kv_cache: Annotated[
        KVCache,
        typer.Option(
            help="Keep keys and values in the model's dtype, or as e4m3: fp8 with the "
            "checkpoint's scales (1.0 without), fp8-dynamic with one for each head and token."
        ),
    ] = KVCache.MODEL,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the steps after the prompt with torch.compile: takes a minute or "
            "more, then each token is faster. Needs a C++ compiler.",
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="Threads that torch uses on a CPU.", min=1)
    ] = None,
) -> None:
    """Generate text, then print the speed, the memory and the kernels that ran.

    The text goes to standard output, all else to standard error.
    """
    tokenizer, inputs = _tokenize(checkpoint, prompt, chat)

    import torch

    from qcore.cli.layer_options import read_dtype
    from qcore.cli.progress import progress_bar
    from qcore.models import compile_decoding, fp8_cache, load_model
    from qcore.models.decoding import generate as generate_tokens

    if threads is not None:
        torch.set_num_threads(threads)
    started = time.perf_counter()
    with progress_bar("building the model") as progress:
        model = load_model(
            checkpoint,
            device=device,
            dtype=read_dtype(dtype) if dtype is not None else None,
            progress=progress,
            quantize=quantize,
        )
    loading = time.perf_counter() - started
    if compiled:
        compile_decoding(model)
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    torch.manual_seed(seed)
    options: dict[str, Any] = {"temperature": temperature} if temperature > 0 else {}
    if kv_cache is not KVCache.MODEL:
        dynamic = kv_cache is KVCache.FP8_DYNAMIC
        options["past_key_values"] = fp8_cache(model, "dynamic" if dynamic else "checkpoint")
    streamer = _timed_streamer(tokenizer)
    with torch.inference_mode():
        generate_tokens(
            model,
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            streamer=streamer,
            **options,
        )
    cache = options.get("past_key_values")
    _print_statistics(model, inputs["input_ids"].shape[-1], loading, streamer.times, cache)


def _tokenize(checkpoint: Path, prompt: str, chat: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    """The tokenizer and the model's inputs."""
    from qcore.errors import CheckpointError, MissingDependencyError

    folder, gguf = checkpoint, {}
    if checkpoint.suffix.lower() == ".gguf" and checkpoint.is_file():
        folder, gguf = checkpoint.parent, {"gguf_file": checkpoint.name}
    elif not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint}: it is no folder with a config.json, and no GGUF file")
    elif not any((checkpoint / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(
            f"{checkpoint}: it holds no tokenizer ({', '.join(_TOKENIZER_FILES)})"
        )
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingDependencyError(
            "generating needs transformers: pip install qcore[models]"
        ) from None
    if gguf and find_spec("gguf") is None:
        raise MissingDependencyError(
            "the tokenizer of a GGUF file needs gguf: pip install 'qcore[gguf]'"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, **gguf
        )
    except Exception as error:  # tokenizers are files of many kinds, each fails in its own way
        raise CheckpointError(
            f"{checkpoint}: its tokenizer cannot be loaded: {_first_line(error)}"
        ) from error
    if not chat:
        encoded = tokenizer(prompt, return_tensors="pt")
    elif getattr(tokenizer, "chat_template", None):
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
    else:
        raise CheckpointError(f"{checkpoint}: its tokenizer has no chat template; leave out --chat")
    inputs = {k: v for k, v in encoded.items() if k in ("input_ids", "attention_mask")}
    if inputs["input_ids"].shape[-1] == 0:
        raise CheckpointError("the prompt has no tokens")
    return tokenizer, inputs


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _timed_streamer(tokenizer: Any) -> Any:
    """A streamer to standard output that notes when each token came."""
    from transformers import TextStreamer

    class TimedStreamer(TextStreamer):
        """Notes the time of the prompt and of every token."""

        def __init__(self) -> None:
            super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            """Note the time, then print."""
            self.times.append(time.perf_counter())
            super().put(value)  # type: ignore[no-untyped-call]

    return TimedStreamer()


def _print_statistics(
    model: Any, prompt_tokens: int, loading: float, times: list[float], cache: Any
) -> None:
    """What it took. ``times`` are those of the prompt and of every new token."""
    from qcore.cli.output import heading, print_lines, print_table
    from qcore.models import explain

    new = len(times) - 1
    rows = [("load", f"{loading:.2f} s")]
    if new > 0:
        prefill = times[1] - times[0]
        rows.append(("prefill", _speed(prompt_tokens, prefill)))
    if new > 1:
        rows.append(("decode", _speed(new - 1, times[-1] - times[1])))
    rows.append(("weights", _size(_weight_bytes(model))))
    if cache is not None:
        rows.append(("KV cache", f"{_size(cache.cache_bytes())} in e4m3, {cache.describe()}"))
    rows += _memory(model)
    heading(f"{new} tokens", file=sys.stderr)
    print_table(("", ""), rows, header=False, file=sys.stderr)
    heading("kernels", file=sys.stderr)
    explanation = explain(model)
    counts: dict[tuple[str, ...], int] = {}
    for row in explanation.rows:
        key = (row.kernel, row.scheme, row.reason)
        counts[key] = counts.get(key, 0) + 1
    if not counts:
        print_lines("no layer is quantized: torch's own", indent=2, file=sys.stderr)
        return
    columns = ("layers", "kernel", "of", "why")
    lines = [(count, *key) for key, count in counts.items()]
    print_table(columns, lines, right=("layers",), whole=("kernel",), file=sys.stderr)


def _speed(tokens: int, seconds: float) -> str:
    plural = "s" if tokens != 1 else ""
    return f"{tokens / seconds:.1f} tokens/s ({tokens} token{plural} in {seconds:.2f} s)"


def _weight_bytes(model: Any) -> int:
    """Bytes of all parameters and buffers; what is shared counts once."""
    seen: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def _memory(model: Any) -> list[tuple[str, str]]:
    """The most that was in use, of the process and of the device."""
    import torch

    rows = []
    try:
        import resource
    except ImportError:  # not on Windows
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        rows.append(("peak memory", f"{_size(peak)} of the process"))
    if model.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(model.device)
        rows.append(("", f"{_size(peak)} on {model.device}"))
    return rows


def _size(count: int) -> str:
    from qcore.quantize.report import size_text

    return size_text(count)
