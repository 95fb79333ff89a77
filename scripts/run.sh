#!/usr/bin/env bash
# Run a script of this repository in .venv, made on first use:
#   scripts/run.sh ppo_hesscale.py --env-id Hopper-v4 --optimizer scaled-adahesscale
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh requirements.txt
exec python "$@"
