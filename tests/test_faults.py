"""The table of faults (scripts/run.sh tests/faults.py) is up to date: every text to replace is in the sources."""

import faults


def test_every_fault_can_be_planted():
    for name, files, tests, *pairs in faults.FAULTS:
        assert tests in faults.TESTS
        for file in files.split():
            text = (faults.ROOT / file).read_text()
            for old, new in pairs:
                assert old in text and old != new, f"{file}: {name}"
                text = text.replace(old, new)
            if file.endswith(".py"):
                compile(text, file, "exec")  # a fault of syntax is caught by any test
