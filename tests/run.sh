#!/usr/bin/env bash
# Set up and pass all tests: an environment for tox, then every environment that tox lists.
#   bash tests/run.sh                 everything
#   bash tests/run.sh -e core -- -k marlin     arguments go to tox
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${QCORE_TOOLS_VENV:-.venv-tox}
if ! [ -x "$tools/bin/tox" ]; then
    echo "Setting up tox in $tools"
    "${PYTHON:-python3}" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet "tox>=4.21,<5"
fi
exec "$tools/bin/tox" run "$@"
