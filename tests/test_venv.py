"""scripts/venv.sh: an environment that was interrupted heals, and what can't work is one line."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

NO_ENSUREPIP = """The virtual environment was not created successfully because ensurepip is not
available.  On Debian/Ubuntu systems, you need to install the python3-venv package."""


@pytest.fixture
def checkout(tmp_path):
    """A checkout in a folder with a space in its name, whose requirements are none."""
    folder = tmp_path / "a checkout"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/venv.sh", folder / "scripts")
    (folder / "requirements.txt").write_text("# nothing\n")
    return folder


def source(checkout, **environment):
    """Source venv.sh; return the exit status, which Python is first on PATH then, and the errors."""
    environment = os.environ | {"PYTHON": sys.executable} | environment
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


def test_an_environment_is_made_once_and_then_nothing_is_written(checkout):
    assert is_made(checkout, source(checkout))
    (checkout / ".venv.lock").unlink(missing_ok=True)
    before = {path: path.stat().st_mtime_ns for path in checkout.rglob("*") if "__pycache__" not in path.parts}
    code, _, err = source(checkout)  # so that a checkout that can't be written can be used
    assert code == 0 and err == ""
    assert before == {path: path.stat().st_mtime_ns for path in checkout.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("left", ["empty", "without pip", "broken link"])
def test_a_half_made_environment_heals(checkout, left):
    (checkout / ".venv/bin").mkdir(parents=True)
    if left == "without pip":
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    elif left == "broken link":
        (checkout / ".venv/bin/python").symlink_to("/no/such/python")
    assert is_made(checkout, source(checkout))


def test_a_python_that_is_too_old_is_one_line_and_leaves_nothing(checkout):
    old = fake_python(checkout, '[ "$1" = --version ] && echo Python 3.10.9; exit 1')
    code, _, err = source(checkout, PYTHON=old)
    assert code == 1 and len(err.splitlines()) == 1
    assert "Python 3.10.9" in err and "Python 3.11 or newer is needed" in err and "set PYTHON" in err
    assert not (checkout / ".venv").exists()
    assert is_made(checkout, source(checkout))


def test_a_python_without_venv_names_the_package_and_the_next_try_works(checkout):
    half = f'if [ "$2" = venv ]; then mkdir -p .venv/bin; cat <<END\n{NO_ENSUREPIP}\nEND\nexit 1; fi'
    code, _, err = source(checkout, PYTHON=fake_python(checkout, half))
    assert code == 1
    (line,) = [text for text in err.splitlines() if text.startswith("error: ")]
    assert "apt install python3-venv" in line
    assert not (checkout / ".venv").exists()
    assert is_made(checkout, source(checkout))


def test_what_can_not_be_installed_is_one_line_and_is_tried_again(checkout):
    (checkout / "requirements.txt").write_text("./no-such-package\n")
    code, _, err = source(checkout)
    assert code == 1
    (line,) = [text for text in err.splitlines() if text.startswith("error: ")]
    assert "requirements.txt was not installed" in line and "no-such-package" in line
    (checkout / "requirements.txt").write_text("# nothing\n")
    assert is_made(checkout, source(checkout))
