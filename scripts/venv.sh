# Sourced by the other scripts: puts an environment with the pinned requirements first on PATH.
# usage: . scripts/venv.sh requirements.txt [requirements-dev.txt]
# Makes .venv on first use, and installs again when a requirements file has changed.
if command -v flock >/dev/null; then  # runs that start side by side wait for the one that installs
    exec 9>.venv.lock
    flock 9
fi
for file in "$@"; do
    if ! cmp -s "$file" ".venv/installed-$file"; then
        [ -x .venv/bin/python ] || { echo "creating .venv (once; a minute or two)" >&2; "${PYTHON:-python3}" -m venv .venv; }
        # an environment that failed half-way has no copy of the file, and is completed next time
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file" >&2
        cp "$file" ".venv/installed-$file"
    fi
done
exec 9>&-
PATH="$PWD/.venv/bin:$PATH"
