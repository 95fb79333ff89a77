"""Write tables as CSV: scripts, experiments and benchmarks do it here. Needs no package."""

import csv
import io
import os


def csv_text(rows, digits=6, header=True):
    """Return rows {column: value} as CSV; the first has all columns.

    Numbers have so many digits; None and NaN become empty fields.
    """
    text = lambda x: ("" if x != x else f"{x:.{digits}g}") if isinstance(x, float) else x  # noqa: E731
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: text(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def write_csv(path, rows, digits=6, append=False):
    """Write csv_text of rows to the file `path`, or after those that are there."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "a" if append else "w", newline="", encoding="utf-8") as file:
        file.write(csv_text(rows, digits, header=file.tell() == 0))
