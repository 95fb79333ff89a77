#!/usr/bin/env bash
# Make the environments of what the benchmarks compare with, .venv-peers and .venv-cleanrl:
#   benchmarks/peers.sh
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."

pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2; }

for name in peers cleanrl; do
    venv=.venv-$name
    cmp -s "benchmarks/$name.txt" "$venv/installed.txt" && continue
    echo "making $venv (a minute or two)" >&2
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear "$venv"
    pip -r "benchmarks/$name.txt"
    # the release that the authors' HesScale is written for; the torch < 2 that it asks for it does not need
    [ $name != peers ] || pip --no-deps backpack-for-pytorch==1.3.0
    cp "benchmarks/$name.txt" "$venv/installed.txt"  # last, so that what failed half-way is completed next time
done
