#!/usr/bin/env bash
# What only a GPU can show, most important first: run it on the day that one is at hand.
#
#     bench/gpu.sh [DIR]       (12 minutes at most; DIR is gpu-results by default)
#
# Needs `pip install -e ".[test,cuda]"`. Every step has a time limit of its own and
# writes to DIR as it goes, so that a run that is cut short leaves what it has seen.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu-results}
mkdir -p "$out"
export XLA_PYTHON_CLIENT_PREALLOCATE=false

if [ "$(python -c 'import jax; print(jax.default_backend())' 2>/dev/null)" != gpu ]; then
  echo "bench/gpu.sh: JAX sees no GPU; install jax[cuda12], and see jax.devices()" >&2
  exit 2
fi

step() { # name, seconds, command...
  local name=$1 limit=$2 start=$SECONDS code=0
  shift 2
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1 || code=$?
  echo "$name: exit code $code after $((SECONDS - start)) s" | tee -a "$out/steps.txt"
}

git rev-parse HEAD >"$out/commit.txt"
nvidia-smi >"$out/device.txt" 2>&1 || true
# 1. Is the text right: the kernels themselves (elsewhere they are interpreted), then the
#    demo's problems with drafts and without.
step kernels 120 python -m pytest -q -p no:cacheprovider \
  tests/models/test_attention_kernel.py tests/models/test_rotary_kernel.py \
  tests/numerics/test_eight_bit_kernel.py
step exactness 90 python -m bench --sizes demo --only identical-text network-calls \
  --rounds 3 --out "$out/exactness"
# 2. Seconds: a call against the memory's rate, the gain in calls that is kept in wall
#    time, a call of 8 drafts against one of 1, and the memory that drafts take.
step roofline 210 python -m bench --sizes 4B --only roofline --rounds 7 \
  --out "$out/roofline"
step memory 90 python -m bench --sizes 4B --only decode-memory --out "$out/memory"
# 3. Weights in 8 bits: right answers, and seconds of a call.
step int8 120 python -m bench.int8 --limit 12 --rounds 5
# 4. The draft length that "auto" chooses.
step auto 90 python -m bench --sizes demo --only auto-draft-length --rounds 5 \
  --out "$out/auto"
cat "$out/steps.txt"
