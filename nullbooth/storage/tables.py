"""Atomic writes of CSV files."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nullbooth.storage.atomic import whole


def write_csv(path: Path | str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows under a header. columns: keys to write, in this order (default: all, in the order they first appear).

    A row that lacks a key gets an empty cell.
    """
    rows = list(rows)
    names = columns if columns is not None else list(dict.fromkeys(key for row in rows for key in row))
    with whole(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, names, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
