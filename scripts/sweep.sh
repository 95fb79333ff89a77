#!/usr/bin/env bash
# Run a grid of agents, environments, optimizers, step sizes and seeds, here or on SLURM; --help says all:
#   scripts/sweep.sh quick                         # scripts/grids/quick.toml, a run on each core
#   scripts/sweep.sh performance --slurm --time 12:00:00 --sbatch="--account=def-someone"
# The runs lie in runs/ where the command is given.
set -euo pipefail
unset CDPATH
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/venv.sh" requirements.txt -- "$@"
exec python "$root/scripts/sweep.py" "$@"
