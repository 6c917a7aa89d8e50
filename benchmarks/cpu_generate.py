"""Gemma 3 270M from a GGUF file: tokens a second and perplexity, of qcore and of others.

    python benchmarks/cpu_generate.py [--gguf FILE] [--folder FOLDER] [--llama PYTHON]
                                      [--threads N ...] [--peers NAME ...] [--rounds N]
                                      [--out FILE.json]

``--gguf`` is the model's file and ``--folder`` the same weights in floats, for transformers;
`examples/quickstart` puts both into ``~/.cache/qcore``. ``--llama`` names the Python of an
environment with llama-cpp-python, built for this machine:

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python

Every contender lives in a process of its own (`generate_peers.py`). All of them are measured in
turn, round after round: they read a prompt and write greedily. The speed of a prompt is that of the
median round, the speed of writing that of the median token. Perplexity is that of each token given
all before it in a text: Python's documentation of its compound statements, from ``pydoc_data``. It
does not depend on threads and is computed once, with the last of ``--threads``. All of it takes
about half an hour; what is done is said on standard error, and written after each of ``--threads``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-not-found]
from typing import Any

import transformers
from environment import environment
from generate_peers import PEERS

CONTEXT = 4096
CACHE = Path(os.environ.get("QCORE_CACHE", Path.home() / ".cache" / "qcore"))


class Contender:
    """A model in another process."""

    def __init__(self, python: str, name: str, threads: int, args: Any) -> None:
        self.name, self.threads = name, threads
        script = Path(__file__).with_name("generate_peers.py")
        self._process = subprocess.Popen(
            [python, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        made = self.ask(
            do="make",
            peer=name,
            gguf=str(args.gguf),
            folder=str(args.folder),
            threads=threads,
            context=CONTEXT,
        )
        self.version, self.load_seconds = made["version"], made["load_seconds"]
        self.prompts: list[float] = []
        self.steps: list[float] = []
        self.made: list[int] = []

    def ask(self, **what: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def round(self, tokens: list[int], new: int, keep: bool) -> None:
        """Read and write once; the first time is not kept."""
        answer = self.ask(do="run", tokens=tokens, new=new)
        if keep:
            self.prompts.append(answer["prompt_seconds"])
            self.steps += answer["new_seconds"]
            self.made = answer["made"]

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def say(what: str) -> None:
    """Progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {what}", file=sys.stderr, flush=True)


def measure(threads: int, tokens: list[int], args: Any) -> list[dict[str, Any]]:
    """One row for each contender that runs here."""
    with ExitStack() as stack:
        contenders = []
        for name in args.peers:
            python = args.llama if name == "llama.cpp" else sys.executable
            if python is None:
                continue
            say(f"{threads} threads: load {name}")
            try:
                contender = Contender(python, name, threads, args)
            except (RuntimeError, OSError, ValueError) as error:
                print(f"{name} is left out: {error}")
                continue
            stack.callback(contender.close)
            contenders.append(contender)
        prompt = tokens[: args.prompt]
        for turn in range(-1, args.rounds):
            for contender in contenders if turn % 2 else contenders[::-1]:
                what = f"round {turn + 1} of {args.rounds}" if turn >= 0 else "first time"
                say(f"{threads} threads: {what}: {contender.name}")
                contender.round(prompt, args.new, turn >= 0)
        surprises: dict[str, float] = {}
        if threads == args.threads[-1]:
            for contender in contenders:
                say(f"perplexity: {contender.name}")
                nats = contender.ask(do="surprise", tokens=tokens)["nats"]
                surprises[contender.name] = math.exp(nats)
        return [
            {
                "contender": c.name,
                "version": c.version,
                "threads": threads,
                "load_seconds": c.load_seconds,
                "prompt_tokens": len(prompt),
                "prompt_per_s": len(prompt) / statistics.median(c.prompts),
                "new_tokens": args.new,
                "new_per_s": 1 / statistics.median(c.steps),
                "ms_per_token": 1e3 * statistics.median(c.steps),
                "perplexity": surprises.get(c.name),
                "prompt_seconds": c.prompts,
                "new_seconds": c.steps,
                "made": c.made,
            }
            for c in contenders
        ]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows, aligned."""
    width = max(len(row["contender"]) for row in rows)
    lines = [
        f"{'':<{width}}  threads  prompt tokens/s  new tokens/s  ms/token  perplexity  load s",
    ]
    lines += [
        f"{row['contender']:<{width}}  {row['threads']:>7}  {row['prompt_per_s']:>15.0f}  "
        f"{row['new_per_s']:>12.1f}  {row['ms_per_token']:>8.2f}  {row['perplexity'] or '':>10.6}  "
        f"{row['load_seconds']:>6.1f}"
        for row in rows
    ]
    return "\n".join(lines)


def write(rows: list[dict[str, Any]], tokens: list[int], args: Any) -> None:
    """The results as JSON."""
    report = {
        "environment": environment("qcore-cpu", "transformers"),
        "load": os.getloadavg()[0],
        "gguf_sha256": hashlib.sha256(args.gguf.read_bytes()).hexdigest(),
        "tokens": len(tokens),
        "tokens_sha256": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "results": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, default=CACHE / "gemma-3-270m-q4_k_m.gguf")
    parser.add_argument("--folder", type=Path, default=CACHE / "gemma-3-270m")
    parser.add_argument("--llama", help="the Python of an environment with llama-cpp-python")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to write")
    parser.add_argument("--text", type=int, default=3072, help="tokens of the text for perplexity")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write JSON here")
    args = parser.parse_args()
    text = topics["compound"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.folder)
    tokens = tokenizer(text).input_ids[: args.text]
    rows: list[dict[str, Any]] = []
    for threads in args.threads:
        rows += measure(threads, tokens, args)
        print(table(rows), flush=True)
        if args.out:
            write(rows, tokens, args)


if __name__ == "__main__":
    main()
