#!/bin/sh
# On a machine with a CUDA device: the gpu tests, then rates; some six minutes.
#
#   tests/gpu_check.sh [FOLDER OF LOGS [FOLDER OF PHOTOGRAPHS IN CLASS FOLDERS]]
set -u
cd "$(dirname "$0")/.." || exit 1
logs=${1:-/tmp/gpu_check}
mkdir -p "$logs"
export PYTHONUNBUFFERED=1 PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python3 -c 'import torch; print("torch", torch.__version__)'

timeout -s INT -k 10 150 python3 -m pytest -m gpu -o addopts= --import-mode=importlib \
    --strict-markers -n 6 --dist load -p no:cacheprovider -p no:benchmark -v -rA --tb=short \
    --durations 10 tests/gpu >"$logs/tests.log" 2>&1
failed=$?
grep -E '^(FAILED|ERROR|SKIPPED)' "$logs/tests.log" | cut -c1-200
tail -n 1 "$logs/tests.log"

timeout 200 python3 tests/scripts/measure_gpu.py "$logs" >"$logs/engines.log" 2>&1
grep -E '^(rate|failed)' "$logs/engines.log"
timeout 60 python3 tests/scripts/measure_training.py 5 >"$logs/training.log" 2>&1
tail -n 4 "$logs/training.log"
if [ $# -gt 1 ]; then
    timeout 60 python3 tests/scripts/measure_gpu.py "$logs" "$2" >"$logs/jobs.log" 2>&1
    grep -E '^(job|failed)' "$logs/jobs.log"
fi
exit $failed
