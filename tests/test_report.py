"""The figures that README.md and docs/ tell are those in results/, and these are what the commands there make."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, read_csv, table_cells

sys.path.insert(0, str(ROOT / "scripts"))
import drawing
import plot
import reading

from hesscale_utils import parse_args

COMMANDS = {"docs/report.md": 14, "docs/defaults.md": 6}  # of plot.py, in code blocks
WITH_INTERVALS = {"README.md": 20, "docs/report.md": 40, "docs/defaults.md": 10, "docs/stability.md": 10}
# the README's table of differences: of each row the file, the return, and how the names of its series end
SCORES = [
    ("ppo_defaults/ppo", "final", ""),
    ("ppo_defaults/ppo", "mean", ""),
    ("ppo_defaults/evaluations", "final", ""),
    ("ppo_defaults/without_ant", "final", ""),
    ("ppo_step_sizes/at_1", "final", ""),
    ("a2c_agents/a2c", "final", ""),
    ("a2c_agents/a2c", "mean", ""),
    ("a2c_agents/evaluations", "final", ""),
    ("a2c_agents/authors", "final", ", authors' agent"),
]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")


def commands(name):
    """Return the words that each command of plot.py in a file's code blocks has, as bash reads them."""
    prints = 'scripts/run.sh() { [ "$1" != scripts/plot.py ] || printf "%s\\n" "${@:2}" ""; }'
    blocks = [b for b in re.findall(r"```bash\n(.*?)```", read(name), re.S) if "scripts/plot.py" in b]
    script = "\n".join([prints, "scripts/sweep.sh() { :; }", *blocks])
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    return [words.split("\n") for words in told.strip().split("\n\n")]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_make_what_lies_in_results(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # without runs/ beside the archives
    monkeypatch.setattr(reading, "read_archive", functools.cache(reading.read_archive))
    monkeypatch.setattr(drawing, "write_figure", lambda prefix, figure: None)
    for figure in "curves", "step_sizes", "sensitivity", "aggregate":
        monkeypatch.setattr(drawing, f"draw_{figure}", lambda rows, baseline: None)
    told = commands(name)
    for words in told:
        monkeypatch.setattr(sys, "argv", ["plot.py", *words])
        plot.main(parse_args(plot.Args))
    made = {*Path("results").rglob("*.*")}
    assert len(told) == COMMANDS[name] and len(made) > COMMANDS[name]
    for path in made:
        assert (ROOT / path).read_bytes() == path.read_bytes(), f"{name}'s command makes another {path}"


def test_each_row_of_a_table_is_that_of_a_file():
    known = {line for path in ROOT.glob("results/**/*.md") for line in path.read_text(encoding="utf-8").splitlines()}
    for name in "docs/report.md", "docs/defaults.md", "docs/images.md":
        rows = [line for line in read(name).splitlines() if line.startswith("|") and "±" in line]
        assert len(rows) > 5 and not {*rows} - known, name


def intervals():
    """Return (value, low, high) of what the files have, differences also the other way round."""
    found = []
    for path in ROOT.glob("results/**/*.csv"):
        for row in read_csv(path):
            for key in [key.removesuffix("_low") for key in row if key.endswith("_low") and row[key]]:
                value, low, high = (float(row[name]) for name in (key, f"{key}_low", f"{key}_high"))
                found.append((value, low, high))
                if key.endswith("_difference"):
                    found.append((-value, -high, -low))
    return found


def test_each_interval_told_is_that_of_a_file():
    found, number = intervals(), r"(-?\d[\d,]*(?:\.\d+)?)"
    for name, least in WITH_INTERVALS.items():
        told = re.findall(rf"{number}\)? \({number} to {number}\)", re.sub(r"\s+", " ", read(name)))
        assert len(told) >= least
        for words in told:
            values = [float(word.replace(",", "")) for word in words]
            last = [0.5001 * 10 ** -len(word.partition(".")[2]) for word in words]
            same = (all(abs(a - b) <= d for a, b, d in zip(row, values, last, strict=True)) for row in found)
            assert any(same), f"{name}: {words[0]} ({words[1]} to {words[2]}) is in no file of results/"


def test_the_readmes_scores():
    table = read("README.md").split("## What it shows")[1].split("\n\n")[2].splitlines()
    assert table[0] == "| | seeds | AdaHesScale | Scaled Adam | Scaled AdaHesScale |"
    for line, (name, key, ending) in zip(table[2:], SCORES, strict=True):
        rows = read_csv(ROOT / f"results/{name}_table.csv")
        scores = {row["series"]: row for row in rows if row["env_id"] == "all, score"}
        _, _, *cells = table_cells(line)
        for optimizer, cell in zip(("adahesscale", "scaled-adam", "scaled-adahesscale"), cells, strict=True):
            if row := scores.get(optimizer + ending):
                value, low, high = (float(row[f"{key}_difference{end}"]) for end in ("", "_low", "_high"))
                text = f"{value:.2f} ({low:.2f} to {high:.2f})".replace("-0.00", "0.00")
                assert cell == (f"**{text}**" if low > 0 else text)
            else:
                assert cell in ("", "diverges")


def test_the_reports_step_sizes():
    tables = re.findall(r"\n\| step size \|.*?(?=\n\n)", read("docs/report.md"), re.S)
    for table, name in zip(tables, ("ppo", "evaluations"), strict=True):
        rows, found = read_csv(ROOT / f"results/ppo_step_sizes/{name}_step_sizes.csv"), {}
        for row in sorted(rows, key=lambda row: float(row["learning_rate"])):
            if row["env_id"] == "all, score":
                value = f"{float(row['value']):.2f}".replace("-0.00", "0.00")
                found.setdefault(drawing.label(row["series"]), []).append(value)
        told = map(table_cells, table.strip().splitlines()[2:])
        assert {optimizer: values for optimizer, *values in told} == found and len(found) == 4
