#!/usr/bin/env bash
# qcore-cuda for tox, where there is nvcc; elsewhere each step says so and does nothing.
#   bash tests/cuda_wheel.sh build DIR           the wheel: sm_90a, one tile of CUTLASS
#   bash tests/cuda_wheel.sh install DIR         into this environment, without what it depends on
#   bash tests/cuda_wheel.sh test DIR [ARGS]     its tests; ARGS go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
step=$1 folder=$2
shift 2

if [ "$step" = build ]; then
    rm -rf "$folder"
    if ! command -v nvcc >/dev/null; then
        echo "skipped: qcore-cuda needs nvcc (CUDA 13) to be built, and this machine has none"
        exit 0
    fi
    QCORE_CUDA_ARCHS=${QCORE_CUDA_ARCHS:-9.0a} python -m pip wheel --no-deps --wheel-dir "$folder" \
        -C "cmake.define.SM90_TILES=${QCORE_CUDA_TILES:-64x128x128_1x1_pingpong}" \
        -C "cmake.define.QCORE_MARLIN_SET=${QCORE_MARLIN_SET:-ci}" ./plugins/cuda-cutlass
    exit 0
fi

wheel=$(find "$folder" -name "*.whl" 2>/dev/null | head -n 1 || true)
if [ -z "$wheel" ]; then
    echo "skipped: no wheel of qcore-cuda was built"
    exit 0
fi
case $step in
    install) python -m pip install --no-deps --force-reinstall "$wheel" ;;
    test) python -m pytest plugins/cuda-cutlass/tests "$@" ;;
    *) echo "unknown step: $step"; exit 2 ;;
esac
