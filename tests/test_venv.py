"""The shell scripts: an environment that was interrupted heals, what can't work is one line, and a script finds all."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

PARTS = "-study", "-extras", "-dev"
NO_ENSUREPIP = """The virtual environment was not created successfully because ensurepip is not
available.  On Debian/Ubuntu systems, you need to install the python3-venv package."""


@pytest.fixture
def checkout(tmp_path):
    """A checkout in a folder with a space in its name, whose requirements are none."""
    folder = tmp_path / "a checkout"
    (folder / "scripts").mkdir(parents=True)
    for script in (ROOT / "scripts").glob("*.sh"):
        shutil.copy(script, folder / "scripts")
    for part in ("", *PARTS):
        (folder / f"requirements{part}.txt").write_text("# nothing\n")
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python that makes an environment once, and then copies it: five seconds saved each time."""
    folder = tmp_path_factory.mktemp("python")
    make = f'[ -d made ] || "{sys.executable}" -m venv made; rm -rf "$OLDPWD/.venv"; cp -Rp made "$OLDPWD/.venv"'
    other = f'exec "{sys.executable}" "$@"'
    return fake_python(
        folder, f'case "$*" in "-m venv --clear .venv") cd "{folder}" && {{ {make}; }} ;; *) {other} ;; esac'
    )


def source(checkout, python, **environment):
    """Source venv.sh; return the exit status, which Python is first on PATH then, and the errors."""
    environment = os.environ | {"PYTHON": python} | environment
    command = 'set -euo pipefail; . scripts/venv.sh requirements.txt; python -c "import pip, sys; print(sys.prefix)"'
    done = subprocess.run(["bash", "-c", command], cwd=checkout, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout.strip(), done.stderr


def fake_python(folder, text):
    """An executable that stands in for Python."""
    path = folder / "python-fake"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def is_made(checkout, result):
    code, prefix, err = result
    assert code == 0, err
    return prefix == str(checkout / ".venv")


def test_an_environment_is_made_once_and_then_nothing_is_written(checkout, python):
    assert is_made(checkout, source(checkout, python))
    (checkout / ".venv.lock").unlink(missing_ok=True)
    before = {path: path.stat().st_mtime_ns for path in checkout.rglob("*") if "__pycache__" not in path.parts}
    code, _, err = source(checkout, python)  # so that a checkout that can't be written can be used
    assert code == 0 and err == ""
    assert before == {path: path.stat().st_mtime_ns for path in checkout.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("left", ["empty", "without pip", "broken link"])
def test_a_half_made_environment_heals(checkout, left, python):
    (checkout / ".venv/bin").mkdir(parents=True)
    if left == "without pip":
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    elif left == "broken link":
        (checkout / ".venv/bin/python").symlink_to("/no/such/python")
    assert is_made(checkout, source(checkout, python))


def test_an_environment_of_somebody_elses_without_pip_is_not_emptied_but_compiled(checkout, python):
    """As uv makes it; it gets a pip, or one line says that it can't."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    (checkout / ".venv/lib/mine.py").touch()
    (checkout / "broken").mkdir()
    (checkout / "broken/ensurepip.py").write_text("raise SystemExit(1)")
    code, _, err = source(checkout, python, PYTHONPATH=str(checkout / "broken"))
    assert code == 1 and err == f"error: {checkout}/.venv has no pip, and its module ensurepip can't add it; " \
        "move that environment away\n"  # fmt: skip
    assert is_made(checkout, source(checkout, python, PYTHONDONTWRITEBYTECODE="1"))
    assert [*(checkout / ".venv/lib/__pycache__").glob("mine.*.pyc")]  # or where that is set, each start compiles torch


def test_a_python_that_is_too_old_is_one_line_and_leaves_nothing(checkout, python):
    old = fake_python(checkout, '[ "$1" = --version ] && echo Python 3.10.9; exit 1')
    code, _, err = source(checkout, old)
    assert code == 1 and len(err.splitlines()) == 1
    assert "Python 3.10.9" in err and "Python 3.11 or newer is needed" in err and "set PYTHON" in err
    assert not (checkout / ".venv").exists()
    assert is_made(checkout, source(checkout, python))


def test_a_python_without_venv_names_the_package_and_the_next_try_works(checkout, python):
    half = f'if [ "$2" = venv ]; then mkdir -p .venv/bin; cat <<END\n{NO_ENSUREPIP}\nEND\nexit 1; fi'
    code, _, err = source(checkout, fake_python(checkout, half))
    assert code == 1
    (line,) = [text for text in err.splitlines() if text.startswith("error: ")]
    assert "apt install python3-venv" in line
    assert not (checkout / ".venv").exists()
    assert is_made(checkout, source(checkout, python))


def test_what_can_not_be_installed_is_one_line_and_is_tried_again(checkout, python):
    (checkout / "requirements.txt").write_text("./no-such-package\n")
    code, _, err = source(checkout, python)
    assert code == 1
    (line,) = [text for text in err.splitlines() if text.startswith("error: ")]
    assert "can't install requirements.txt: " in line and "no-such-package" in line
    (checkout / "requirements.txt").write_text("# nothing\n")
    assert is_made(checkout, source(checkout, python))


def test_an_environment_whose_python_is_gone_is_made_again(checkout, python):
    assert is_made(checkout, source(checkout, python))
    (checkout / ".venv/bin/python").unlink()
    (checkout / ".venv/bin/python").symlink_to("/no/such/python")
    assert is_made(checkout, source(checkout, python))


def test_installing_says_how_far_it_is_and_pip_that_was_killed_is_one_line(checkout, python):
    pip = fake_python(
        checkout,
        """case "$*" in *install*)
        echo "Collecting a==1"; echo "  Downloading a.whl (5 MB)"; echo "Installing collected packages: a, b, c"
        kill -9 $$ ;; esac""",
    )
    (checkout / ".venv/bin").mkdir(parents=True)
    shutil.copy(pip, checkout / ".venv/bin/python")
    code, _, err = source(checkout, python)
    assert code == 1
    assert err.splitlines() == [
        "requirements.txt: unpacking 3 packages, 0 s", "error: can't install requirements.txt: pip was ended"
    ]  # fmt: skip
    assert not (checkout / ".venv/installed-requirements.txt").exists()


def test_an_index_out_of_reach_is_told(checkout, python):
    pip = """case "$*" in *install*)
        echo "WARNING: Retrying (Retry(total=4)) after connection broken by 'SSLError()': /simple/a/"
        echo "ERROR: Could not find a version that satisfies a==1 (from versions: none)"; exit 1 ;; esac"""
    (checkout / ".venv/bin").mkdir(parents=True)
    shutil.copy(fake_python(checkout, pip), checkout / ".venv/bin/python")
    code, _, err = source(checkout, python)
    assert code == 1 and err.startswith("error: can't install requirements.txt: ERROR: Could not find a version")
    assert err.endswith("(from versions: none); the package index is out of reach\n")


@pytest.fixture
def ready(checkout):
    """The checkout, with a Python that installs nothing and tells where it runs what."""
    (checkout / ".venv/bin").mkdir(parents=True)
    told = 'case "$*" in "-m pip "* | "-m compileall "*) ;; *) for arg in "$PWD" "$@"; do echo "$arg"; done ;; esac'
    shutil.copy(fake_python(checkout, told), checkout / ".venv/bin/python")
    for path in ("ppo_hesscale.py", "scripts/plot.py", "scripts/sweep.py", "experiments/an.py", "tests/faults.py"):
        (checkout / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path.replace("an.py", "approximation_quality.py"), checkout / path)
    return checkout


def call(cwd, *command):
    """What Python was told: its folder, and its arguments."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=os.environ | {"CDPATH": "/"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def installed(checkout):
    return {path.name.removeprefix("installed-requirements")[:-4] for path in checkout.glob(".venv/installed-*")}


def test_scripts_run_in_the_callers_folder_and_are_found_there_and_in_the_repository(ready, tmp_path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    run, sweep = ready / "scripts/run.sh", ready / "scripts/sweep.sh"
    assert call(ready, "scripts/run.sh", "ppo_hesscale.py", "--seed", "1 2") == [
        str(ready), "ppo_hesscale.py", "--seed", "1 2"
    ]  # fmt: skip
    assert call(elsewhere, run, "scripts/plot.py", "x") == [str(elsewhere), str(ready / "scripts/plot.py"), "x"]
    (elsewhere / "own.py").write_text("")
    assert call(elsewhere, run, "own.py") == [str(elsewhere), "own.py"]
    assert call(ready / "experiments", "../scripts/run.sh", "an.py") == [str(ready / "experiments"), "an.py"]
    assert call(elsewhere, run, "-m", "tensorboard.main") == [str(elsewhere), "-m", "tensorboard.main"]
    assert call(elsewhere, sweep, "quick") == [str(elsewhere), str(ready / "scripts/sweep.py"), "quick"]
    assert sorted(os.listdir(elsewhere)) == ["own.py"]


@pytest.mark.parametrize(
    "command, parts",
    [
        ("run.sh ppo_hesscale.py --env-id Hopper-v4", {""}),
        ("run.sh ppo_hesscale.py --track", {"", "-extras"}),
        ("run.sh scripts/plot.py --out x", {"", "-study"}),
        ("run.sh experiments/an.py", {"", "-study"}),
        ("run.sh tests/faults.py", {"", *PARTS}),
        ("run.sh -m tensorboard.main", {""}),
        ("sweep.sh quick", {""}),
        ("sweep.sh quick --capture-video True", {"", "-extras"}),
        ("test.sh", {"", *PARTS}),
    ],
)
def test_a_script_installs_what_it_needs(ready, command, parts):
    script, *args = command.split()
    call(ready, ready / "scripts" / script, *args)
    assert installed(ready) == parts


def test_all_that_is_missing_is_installed_at_once(ready):
    told, python = ready / "told", ready / ".venv/bin/python"
    pip = f'"-m pip install "*) echo "$*" >> "{told}" ;; "-m pip "*'
    python.write_text(python.read_text().replace('"-m pip "*', pip))
    for command, files in (
        (["ppo_hesscale.py", "--track"], " -r requirements.txt -r requirements-extras.txt"),
        (["ppo_hesscale.py", "--track"], ""),  # nothing is missing
        (["scripts/plot.py"], " -r requirements-study.txt"),
    ):
        told.write_text("")
        call(ready, ready / "scripts/run.sh", *command)
        assert [line.partition(" --no-compile")[2] for line in told.read_text().splitlines()] == [files] * bool(files)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root can write everywhere")
def test_a_checkout_that_can_not_be_written_is_used_if_it_is_complete_and_else_one_line(ready, tmp_path):
    call(ready, ready / "scripts/sweep.sh", "quick")
    for folder in (tmp_path, *tmp_path.parents):
        if folder == tmp_path or folder.name.startswith(("pytest-", "popen-")):
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "mine").mkdir(mode=0o777)
    ready.chmod(0o555)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    try:
        sweep = [*user, str(ready / "scripts/sweep.sh"), "quick"]
        assert call(tmp_path / "mine", *sweep)[0] == str(tmp_path / "mine")
        plot = [*user, str(ready / "scripts/run.sh"), "scripts/plot.py"]
        done = subprocess.run(plot, cwd=tmp_path / "mine", capture_output=True, text=True)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "can't be written" in done.stderr and "requirements-study.txt" in done.stderr
    finally:
        ready.chmod(0o755)
