"""Write tables as CSV: scripts, experiments and benchmarks do it here. Needs no package."""

import csv
import os


def write_csv(path, rows, digits=6, append=False):
    """Write rows {column: value} to the file `path`, or after those that are there; the first row has all columns.

    Numbers have so many digits; None and NaN become empty fields.
    """
    text = lambda x: ("" if x != x else f"{x:.{digits}g}") if isinstance(x, float) else x  # noqa: E731
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "a" if append else "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows({name: text(value) for name, value in row.items()} for row in rows)
