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
    # --clear: an attempt that was interrupted may have left a part
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

install_requirements() { # says each second how far it is or, where the output is no terminal, every 15 seconds
    local total n=0 tick=15 what="looking for packages" failed= offline= status=1 line now start=$SECONDS last=$SECONDS
    local files=$* wanted=() file
    for file in "$@"; do wanted+=(-r "$file"); done
    total=$(cat "$@" | grep -c '^[A-Za-z]')
    [ ! -t 2 ] || tick=1
    while :; do # in bash, for an awk may read ahead and say nothing
        now=$SECONDS
        if IFS= read -r -t $tick line; then
            case $line in
            Collecting\ * | "Requirement already satisfied"*)
                [ $n -ge "$total" ] || n=$((n + 1))
                what="$n of $total, ${line#Collecting }"
                what=${what/Requirement already satisfied: /}
                ;;
            *Downloading\ *B\)) what="$n of $total, ${line#*Downloading }" ;;
            "Installing collected packages"*) what="unpacking $(wc -w <<<"${line#*:}" | tr -d ' ') packages" last=-99 ;;
            "Successfully installed"*) what="compiling them" ;;
            *"connection broken by"*) what="looking for the package index" offline="; the package index is out of reach" ;;
            ERROR* | error*) failed="$failed${failed:+ }$line" ;;
            "exit "*) status=${line#exit } && break ;;
            esac
        elif [ "$SECONDS" -eq "$now" ]; then # not the time is over, but pip has been killed
            break
        fi
        if [ $tick -eq 1 ]; then
            printf '\r\033[K%.79s' "$files: $((SECONDS - start)) s, $what" >&2
        elif [ $((SECONDS - last)) -ge $tick ]; then
            echo "$files: $what, $((SECONDS - start)) s" >&2
            last=$SECONDS
        fi
    done < <(
        code=0
        python=.venv/bin/python
        $python -m pip install --disable-pip-version-check --progress-bar off --no-compile "${wanted[@]}" 2>&1 || code=$?
        # on all cores, which pip does not: 50 s in place of 64 on two; it fails, harmlessly, at templates of packages
        [ $code -ne 0 ] || $python -m compileall -qq -j 0 .venv/lib >/dev/null 2>&1 || true
        echo "exit $code"
    )
    [ $tick -ne 1 ] || printf '\r\033[K' >&2
    [ "$status" -eq 0 ] || echo "error: can't install $files: ${failed:-pip was ended}$offline" >&2
    return "$status"
}

complete_venv() {
    local file missing=()
    [ -w . ] || {
        echo "error: $PWD can't be written, and its .venv lacks some of: $*; copy the folder, or let its owner run this" >&2
        return 1
    }
    if command -v flock >/dev/null; then # runs that start side by side wait for the one that installs
        exec 9>.venv.lock
        flock 9
    fi
    if .venv/bin/python -c '' >/dev/null 2>&1; then # an attempt that was interrupted, or uv, has left it without pip
        .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null 2>&1 || {
            echo "error: $PWD/.venv has no pip, and its module ensurepip can't add it; move that environment away" >&2
            return 1
        }
    else
        make_venv || return 1
    fi
    for file in "$@"; do
        cmp -s "$file" ".venv/installed-$file" || missing+=("$file")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        install_requirements "${missing[@]}" || return 1
        for file in "${missing[@]}"; do
            cp "$file" ".venv/installed-$file" # last: what was interrupted has no copy, and is completed next time
        done
    fi
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
