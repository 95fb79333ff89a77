import csv
import signal
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # or what the tests start ignores it, too, begun by `… &`


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table_cells(line):
    """Return the cells of a row of a Markdown table."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more worker than cores, because a fifth of the tests' time is waiting for SLURM, W&B and signals."""
    return (yield) + 1


def pytest_collection_modifyitems(items):
    """The sweeps first, because two of them wait for minutes, and at the end no other test would run beside them."""
    items.sort(key=lambda item: item.path.name != "test_sweep.py")


@pytest.fixture(params=["numpy", "torch"])
def kind(request):
    """Convert tensors to what the mathematics is asked to run on; both must give the same."""
    if request.param == "numpy":
        return lambda t: t.detach().numpy().copy()
    return lambda t: t.detach().clone()
