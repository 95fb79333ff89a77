# Sourced by the other scripts: puts an environment with the pinned requirements first on PATH.
# usage: . scripts/venv.sh requirements.txt [requirements-study.txt ...] [-- the flags of a run]
# Makes the repository's .venv on first use, installs what is missing when a requirements file is new or has changed,
# and completes what was interrupted.

venv_has() { # writes nothing, so that a checkout that can't be written can be used
    local file
    for file in "$@"; do
        cmp -s "$file" ".venv/installed-$file" || return 1
    done
    [ -x .venv/bin/python ] # not where the Python that it was made with is gone
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

install_requirements() { # a line that moves each second, or one every 15 seconds where the output is no terminal
    local file=$1 total terminal= tick=15
    total=$(grep -c '^[A-Za-z]' "$file")
    [ -t 2 ] && terminal=1 tick=1
    {
        while sleep $tick; do echo tick || exit; done 9>&- & # pip itself says nothing while it unpacks
        .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -r "$file" 2>&1
        echo "exit $?"
        kill $! || true
    } 2>/dev/null | awk -v file="$file" -v total="$total" -v terminal="$terminal" -v tick="$tick" '
        function show() {
            printf "%s%s: %s, %d s%s", (terminal ? "\r\033[K" : ""), file, what, seconds, (terminal ? "" : "\n")
            fflush()
        }
        BEGIN { what = "looking for packages"; status = 1 }
        /^tick$/ { seconds += tick; show() }
        /^(Collecting|Requirement already satisfied)/ {
            n += n < total
            what = n " of " total ", " ($1 == "Collecting" ? $2 : $4)
            if (terminal) show()
        }
        /^ *Downloading .*[kMG]B\)/ { what = n " of " total ", " $2 " " $3 " " $4; if (terminal) show() }
        /^Installing collected packages/ { what = "unpacking " NF - 3 " packages"; show() }
        /^(ERROR|error)/ { failed = failed (failed ? " " : "") $0 }
        /^exit [0-9]+$/ { status = $2; exit }
        END {
            if (terminal) printf "\r\033[K"
            if (status) print "error: " file " was not installed: " (failed ? failed : "pip was ended")
            exit status
        }' >&2
}

complete_venv() {
    local file
    [ -w . ] || {
        echo "error: $PWD can't be written, and its .venv lacks some of: $*; copy the folder, or let its owner run this" >&2
        return 1
    }
    if command -v flock >/dev/null; then # runs that start side by side wait for the one that installs
        exec 9>.venv.lock
        flock 9
    fi
    .venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv || return 1
    for file in "$@"; do
        cmp -s "$file" ".venv/installed-$file" && continue
        install_requirements "$file" || return 1
        cp "$file" ".venv/installed-$file" # last: what was interrupted has no copy, and is completed next time
    done
    { exec 9>&-; } 2>/dev/null || true
}

venv_files=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    venv_files+=("$1")
    shift
done
for flag in "$@"; do
    case $flag in --track | --capture-video | --capture_video) venv_files+=(requirements-extras.txt) && break ;; esac
done
venv_root=$(unset CDPATH && cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv_where=$PWD
cd "$venv_root"
venv_has "${venv_files[@]}" || complete_venv "${venv_files[@]}" || exit 1
cd "$venv_where"
PATH="$venv_root/.venv/bin:$PATH"
