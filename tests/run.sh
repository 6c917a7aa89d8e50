#!/usr/bin/env bash
# Set up and pass all tests: an environment for tox, then every environment that tox lists.
#   bash tests/run.sh                 everything, two environments at a time; what one says comes when
#                                     it has ended, and one that passed is removed (together they take
#                                     14 GB, the largest 3)
#   QCORE_TEST_JOBS=1 bash tests/run.sh        one after the other
#   bash tests/run.sh -e core -- -k marlin     arguments go to tox, and what it made stays
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${QCORE_TOOLS_VENV:-.venv-tox}
logs=.tox/runs

if [ "${1:-}" = --environment ]; then # one of all, by the call below
    name=$2 start=$SECONDS result=FAILED
    echo "$name: begins"
    if "$tools/bin/tox" run -e "$name" >"$logs/$name.log" 2>&1; then
        result=passed
        rm -rf ".tox/${name:?}"
    fi
    until mkdir "$logs/printing" 2>/dev/null; do sleep 0.2; done
    cat "$logs/$name.log"
    printf '%-12s %s  %5d s\n' "$name" "$result" $((SECONDS - start)) | tee "$logs/$name.result"
    rmdir "$logs/printing"
    exit
fi

if ! [ -x "$tools/bin/tox" ]; then
    echo "Setting up tox in $tools"
    "${PYTHON:-python3}" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet "tox>=4.21,<5"
fi
if [ $# -gt 0 ]; then
    exec "$tools/bin/tox" run "$@"
fi

names=$("$tools/bin/tox" list --no-desc -q)
jobs=${QCORE_TEST_JOBS:-2}
if [ "$jobs" -gt 1 ]; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # of a test that asks for no other number
fi
rm -rf "$logs"
mkdir -p "$logs"
printf '%s\n' "$names" | xargs -P "$jobs" -n 1 bash tests/run.sh --environment || true

echo
failed=0
for name in $names; do
    cat "$logs/$name.result" 2>/dev/null || echo "$name did not end"
    grep -q passed "$logs/$name.result" 2>/dev/null || failed=1
done
printf '%d s with %d at a time\n' "$SECONDS" "$jobs"
exit "$failed"
