#!/usr/bin/env bash
# Check the style and run the tests on all cores, in .venv, made on first use; arguments go to pytest.
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."
. scripts/venv.sh requirements.txt requirements-{study,extras,dev}.txt
python -m ruff check .
python -m ruff format --check .
exec python -m pytest --numprocesses auto --dist worksteal "$@"
