#!/usr/bin/env bash
# Set up and pass all tests: an environment for tox, then every environment that tox lists.
#   bash tests/run.sh                 everything; an environment that passed is removed (together
#                                     they take 14 GB, the largest 3)
#   bash tests/run.sh -e core -- -k marlin     arguments go to tox, and what it made stays
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${QCORE_TOOLS_VENV:-.venv-tox}
if ! [ -x "$tools/bin/tox" ]; then
    echo "Setting up tox in $tools"
    "${PYTHON:-python3}" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet "tox>=4.21,<5"
fi
if [ $# -gt 0 ]; then
    exec "$tools/bin/tox" run "$@"
fi

names=$("$tools/bin/tox" list --no-desc -q)
results=()
failed=0
for name in $names; do
    start=$SECONDS
    if "$tools/bin/tox" run -e "$name"; then
        result=passed
        rm -rf ".tox/${name:?}"
    else
        result=FAILED
        failed=1
    fi
    results+=("$(printf '%-12s %s  %5d s' "$name" "$result" $((SECONDS - start)))")
done
printf '%s\n' "" "${results[@]}"
exit "$failed"
