"""Contenders of `cpu_generate.py`: a language model in a process and an environment of its own.

Reads a JSON object a line from standard input, answers with one a line:
``{"do": "make", "peer", "gguf", "folder", "threads", "context"}`` ->
``{"version", "load_seconds"}``;
``{"do": "run", "tokens", "new"}`` -> ``{"prompt_seconds", "new_seconds", "made"}``: reads a prompt,
takes the likeliest token, and goes on until there are ``new``; ``new_seconds`` has one for each
token after the first;
``{"do": "surprise", "tokens"}`` -> ``{"nats"}``: the mean of -log p of each token given all before.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

PIECE = 128
"""Tokens whose logits are looked at together: a quarter million numbers each."""


class Model(Protocol):
    """What a contender can do."""

    version: str

    def run(self, tokens: list[int], new: int) -> tuple[list[float], list[int]]:
        """The times at the start, after the prompt and after each further token; the tokens."""

    def surprise(self, tokens: list[int]) -> float:
        """Mean of -log p."""


class LlamaCpp:
    """llama.cpp through the functions of its C interface, as llama-cpp-python declares them."""

    def __init__(self, gguf: str, threads: int, context: int) -> None:
        import llama_cpp

        self.c, self.version = llama_cpp, llama_cpp.__version__
        self.c.llama_backend_init()
        model_settings = self.c.llama_model_default_params()
        self._model = self.c.llama_model_load_from_file(gguf.encode(), model_settings)
        settings = self.c.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = context, threads, threads
        self._context = self.c.llama_init_from_model(self._model, settings)
        vocabulary = self.c.llama_model_get_vocab(self._model)
        self._vocabulary = int(self.c.llama_vocab_n_tokens(vocabulary))

    def _forget(self) -> None:
        self.c.llama_memory_clear(self.c.llama_get_memory(self._context), True)

    def _decode(self, tokens: list[int]) -> np.ndarray:
        """The logits of the last."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = self.c.llama_batch_get_one(array, len(tokens))
        if self.c.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        logits = self.c.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._vocabulary,))

    def run(self, tokens: list[int], new: int) -> tuple[list[float], list[int]]:
        self._forget()
        times, made = [time.perf_counter()], []
        logits = self._decode(tokens)
        while True:
            made.append(int(logits.argmax()))
            times.append(time.perf_counter())
            if len(made) == new:
                return times, made
            logits = self._decode(made[-1:])

    def surprise(self, tokens: list[int]) -> float:
        self._forget()
        total = 0.0
        batch = self.c.llama_batch_init(PIECE, 0, 1)
        for first in range(0, len(tokens), PIECE):
            piece = tokens[first : first + PIECE]
            batch.n_tokens = len(piece)
            for i, token in enumerate(piece):
                batch.token[i], batch.pos[i], batch.logits[i] = token, first + i, True
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            if self.c.llama_decode(self._context, batch) != 0:
                raise RuntimeError("llama_decode failed")
            shape = (len(piece), self._vocabulary)
            logits = np.ctypeslib.as_array(self.c.llama_get_logits(self._context), shape)
            for row, target in zip(logits, tokens[first + 1 : first + PIECE + 1], strict=False):
                wide = row.astype(np.float64)
                top = wide.max()
                total += top + np.log(np.exp(wide - top).sum()) - wide[target]
        self.c.llama_batch_free(batch)
        return total / (len(tokens) - 1)


class Transformers:
    """A model of transformers, run by its ``generate``; qcore's by qcore's."""

    def __init__(self, model: Any, version: str, generate: Any = None) -> None:
        import torch
        from transformers.generation.streamers import BaseStreamer

        class Clock(BaseStreamer):  # type: ignore[misc]
            """Notes when each token comes; the first call is the prompt."""

            def __init__(self) -> None:
                self.times: list[float] = []

            def put(self, value: object) -> None:
                self.times.append(time.perf_counter())

            def end(self) -> None:
                pass

        self._torch, self._clock, self._model = torch, Clock, model.eval()
        self._model.generation_config.eos_token_id = None  # or it might stop
        self.version = version
        self._generate = generate or type(model).generate

    def run(self, tokens: list[int], new: int) -> tuple[list[float], list[int]]:
        ids, clock = self._torch.tensor([tokens]), self._clock()
        start = time.perf_counter()
        with self._torch.inference_mode():
            made = self._generate(
                self._model,
                ids,
                attention_mask=self._torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new,
                streamer=clock,
            )
        return [start, *clock.times[1:]], made[0, len(tokens) :].tolist()

    def surprise(self, tokens: list[int]) -> float:
        torch = self._torch
        ids = torch.tensor(tokens)
        total = 0.0
        with torch.inference_mode():
            hidden = self._model.model(ids[None]).last_hidden_state[0, :-1]
            for first in range(0, len(hidden), PIECE):
                logits = self._model.lm_head(hidden[first : first + PIECE]).double()
                targets = ids[first + 1 : first + 1 + len(logits)]
                total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        return total / (len(tokens) - 1)


def transformers_model(dtype: str, folder: str, threads: int) -> Transformers:
    """The float weights, by torch's own linear layers."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return Transformers(model, f"{transformers.__version__}, torch {torch.__version__}")


def qcore_model(name: str, gguf: str, threads: int) -> Transformers:
    """The blocks of the file, by qcore's kernels: ``qcore DTYPE [approximate] [compiled]``."""
    import qcore
    import torch
    from qcore.models import compile_decoding, generate

    torch.set_num_threads(threads)
    _, dtype, *options = name.split()
    settings = qcore.Settings(approximate="approximate" in options)
    model = qcore.load_model(gguf, dtype=getattr(torch, dtype), settings=settings)
    if "compiled" in options:
        compile_decoding(model)
    return Transformers(model, qcore.__version__, generate)


Ask = dict[str, Any]
QCORE = [
    f"qcore {dtype}{numerics}{how}"
    for dtype in ("float32", "bfloat16")
    for numerics in ("", " approximate")
    for how in ("", " compiled")
]
PEERS: dict[str, Callable[[Ask], Model]] = {
    **dict.fromkeys(QCORE, lambda a: qcore_model(a["peer"], a["gguf"], a["threads"])),
    "transformers float32": lambda a: transformers_model("float32", a["folder"], a["threads"]),
    "transformers bfloat16": lambda a: transformers_model("bfloat16", a["folder"], a["threads"]),
    "llama.cpp": lambda a: LlamaCpp(a["gguf"], a["threads"], a["context"]),
}


def main() -> None:
    """Serve until the input ends."""
    model: Model | None = None
    for line in sys.stdin:
        ask = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if ask["do"] == "make":
                start = time.perf_counter()
                model = PEERS[ask["peer"]](ask)
                answer["version"] = model.version
                answer["load_seconds"] = time.perf_counter() - start
            elif model is None:
                raise RuntimeError("there is no model yet")
            elif ask["do"] == "run":
                times, made = model.run(ask["tokens"], ask["new"])
                answer["prompt_seconds"] = times[1] - times[0]
                answer["new_seconds"] = np.diff(times[1:]).tolist()
                answer["made"] = made
            else:
                answer["nats"] = model.surprise(ask["tokens"])
        except Exception as error:  # a foreign library may raise anything
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
