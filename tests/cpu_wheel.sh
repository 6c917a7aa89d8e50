#!/usr/bin/env bash
# qcore-cpu for tox: its wheel into this environment, with what it declares. It is compiled once for each state of
# its sources (minutes); who comes next finds it in .tox/wheels.
#   bash tests/cpu_wheel.sh
set -euo pipefail
cd "$(dirname "$0")/.."
plugin=plugins/cpu-zentorch wheels=.tox/wheels
sources=$(find "$plugin"/{csrc,src,CMakeLists.txt,LICENSE,README.md,pyproject.toml} -type f \
    ! -name "*.so" ! -name "*.pyc" | LC_ALL=C sort)
state=$(printf '%s\n' "$sources" | xargs sha256sum | sha256sum | cut -c1-16)
folder=$wheels/qcore-cpu-$state
if ! [ -d "$folder" ]; then
    rm -rf "$wheels"/qcore-cpu-*
    python -m pip wheel --no-deps --wheel-dir "$folder.part" "./$plugin"
    mv "$folder.part" "$folder"
fi
python -m pip uninstall --yes qcore-cpu
python -m pip install "$folder"/*.whl
