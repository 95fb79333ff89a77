"""Time functions in turns; print and save their medians, spread and ratios.

Importing this module makes the repository's modules importable from benchmarks/.
"""

import datetime
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import threadpoolctl
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from tables import write_csv


def limit_threads():
    """Limit this process to one thread and, by the environment, the processes that it starts."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    threadpoolctl.threadpool_limits(1)
    if "torch" in sys.modules:  # whole_run.py does not import it
        sys.modules["torch"].set_num_threads(1)


def check_table(args):
    """End the program with one line if --csv can't be written, or if --quick's toy numbers would go there."""
    if args.csv is None:
        return
    path = Path(args.csv)
    if args.quick:
        sys.exit(f"error: --csv {path}: --quick keeps no table; leave one of the two out")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        sys.exit(f"error: --csv {path}: can't be written; give a file in a folder that exists")


def in_turns(functions, rounds, warmup=1):
    """Call each of `functions`, {name: function that returns a time}, `warmup` + `rounds` times, A B C A B C ...

    A machine whose speed drifts then slows all of them alike, and a ratio within a round stays right. Returns
    {name: times [rounds]}.
    """
    times = {name: np.zeros(rounds) for name in functions}
    for i in tqdm(range(-warmup, rounds), leave=False, disable=not sys.stderr.isatty()):
        for name, function in functions.items():
            result = function()
            if i >= 0:
                times[name][i] = result
    return times


def per_call(function, calls):
    """Return a function that calls `function` `calls` times and returns the mean time in microseconds."""

    def timed():
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls * 1e6

    return timed


def report(title, times, base, unit="us", path=None):
    """Print a table: median [quartiles] of each, and of its ratio to `base` within a round; append it to a CSV.

    Args:
        title: the table's title.
        times: {name: times [rounds]}, the result of in_turns.
        base: the name that ratios are relative to.
        unit: unit of the times, e.g. "us", "s", "MB".
        path: path of the CSV; None writes none.

    Returns {name: median ratio to base}.
    """
    print(f"\n{title}")
    rows = []
    for name, t in times.items():
        low, median, high = np.quantile(t, [0.25, 0.5, 0.75])
        ratio_low, ratio, ratio_high = np.quantile(t / times[base], [0.25, 0.5, 0.75])
        print(
            f"  {name:<48}{median:10.4g} {unit:<8} [{low:.4g}, {high:.4g}]".ljust(92)
            + f"{ratio:8.3f} x  [{ratio_low:.3f}, {ratio_high:.3f}]"
        )
        rows.append({
            "benchmark": title, "name": name, "unit": unit, "median": median, "q25": low, "q75": high,
            "base": base, "ratio": ratio, "ratio_q25": ratio_low, "ratio_q75": ratio_high, "rounds": len(t),
            "date": datetime.date.today().isoformat(), "processor": processor(),
        })  # fmt: skip
    if path is not None:
        write_csv(path, rows, digits=5, append=True)
    return {row["name"]: float(row["ratio"]) for row in rows}


def processor():
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
