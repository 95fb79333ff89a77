# Sourced by the other scripts: puts an environment with the pinned requirements first on PATH.
# usage: . scripts/venv.sh requirements.txt [requirements-study.txt ...]
# Makes .venv on first use, installs again when a requirements file has changed, and completes what was interrupted.
# The caller's working directory is the repository.

venv_is_complete() { # writes nothing, so that a checkout that can't be written can be used
    local file
    for file in "$@"; do
        cmp -s "$file" ".venv/installed-$file" || return 1
    done
}

make_venv() {
    local python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
        echo "error: $("$python" --version 2>&1 | tail -n 1) ($python): Python 3.11 or newer is needed;" \
            "set PYTHON to one, as in PYTHON=python3.12" >&2
        return 1
    }
    echo "creating .venv (once)" >&2
    # --clear: an attempt that was interrupted has left an environment without pip
    local output
    output=$("$python" -m venv --clear .venv 2>&1) || {
        rm -rf .venv
        case $output in
        *ensurepip* | *python3-venv*) output="its module venv is incomplete; on Debian and Ubuntu, apt install python3-venv" ;;
        esac
        echo "error: $python can't make .venv: $(tail -n 1 <<<"$output")" >&2
        return 1
    }
}

install_requirements() { # one line that moves, or every ten packages a line where the output is no terminal
    local file=$1 total terminal=
    total=$(grep -c '^[A-Za-z]' "$file")
    [ -t 2 ] && terminal=1
    .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -r "$file" 2>&1 |
        awk -v file="$file" -v total="$total" -v terminal="$terminal" '
            /^(Collecting|Requirement already satisfied)/ {
                n += n < total
                if (terminal) printf "\r\033[K%s: %d of %d, %s", file, n, total, ($1 == "Collecting" ? $2 : $4)
                else if (n % 10 == 0 && n != last) { print file ": " n " of " total; last = n }
                fflush()
            }
            /^Installing collected packages/ { printf "%s%s: installing%s", (terminal ? "\r\033[K" : ""), file, (terminal ? "" : "\n"); fflush() }
            /^(ERROR|error)/ { failed = failed (failed ? " " : "") $0 }
            END { if (terminal) printf "\r\033[K"; if (failed) print "error: " file " was not installed: " failed }' >&2
    [ "${PIPESTATUS[0]}" -eq 0 ]
}

if ! venv_is_complete "$@"; then
    if command -v flock >/dev/null; then # runs that start side by side wait for the one that installs
        exec 9>.venv.lock
        flock 9
    fi
    .venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv || exit 1
    for file in "$@"; do
        cmp -s "$file" ".venv/installed-$file" && continue
        install_requirements "$file" || exit 1
        cp "$file" ".venv/installed-$file" # last: what was interrupted has no copy, and is completed next time
    done
    { exec 9>&-; } 2>/dev/null || true
fi
PATH="$PWD/.venv/bin:$PATH"
