#!/usr/bin/env bash
# Run a script of this repository in .venv, made on first use, with the packages that the script needs:
#   scripts/run.sh ppo_hesscale.py --env-id Hopper-v4 --optimizer scaled-adahesscale
# It runs in the caller's folder, where runs/ then lies. The script's path is relative to that folder or to
# the repository. What is no script goes to python: scripts/run.sh -m tensorboard.main --logdir runs
set -euo pipefail
unset CDPATH
root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -gt 0 ] && [ ! -f "$1" ] && [ -f "$root/$1" ]; then
    set -- "$root/$1" "${@:2}"
fi
files=(requirements.txt)
if [ -f "${1:-}" ]; then
    ! grep -Eq '^ *(import|from) (matplotlib|pandas|scipy|sklearn|reading|drawing)' "$1" || files+=(requirements-study.txt)
    ! grep -q pytest "$1" || files=(requirements.txt requirements-{study,extras,dev}.txt)
fi
. "$root/scripts/venv.sh" "${files[@]}" -- "$@"
exec python "$@"
