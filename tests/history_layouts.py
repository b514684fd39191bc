"""Files of history as other versions wrote them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb

from analytics.columnar import select_list, to_columns
from analytics.files import LAYOUT_KEY
from analytics.records import LAYOUT, Record, columns_of


def write_as(
    path: Path, records: Sequence[Record], names: Iterable[str], *, layout: int | str | None = None, extra: str = ""
) -> Path:
    """Write records with just these columns, as a version with that layout did; None is from before there were
    numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = records[0].stream
    columns = ", ".join(f'"{name}"' for name in names) + extra
    number = "" if layout is None else f", KV_METADATA {{{LAYOUT_KEY}: '{layout}'}}"
    with duckdb.connect() as connection:
        connection.register("batch", to_columns(stream, records))
        rows = f"FROM (FROM batch SELECT {select_list(stream)}) SELECT {columns}"
        connection.execute(f"COPY ({rows}) TO '{path}' (FORMAT parquet{number})")
    return path


def segment(root: Path, stream: str, writer: str = "old-1", number: int = 1) -> Path:
    """Where a writer puts a segment."""
    return root / "live" / writer / stream / f"{number:010d}.parquet"


def names_of(stream: str, layout: int = LAYOUT) -> list[str]:
    """The columns that a stream had in a layout."""
    return [column.name for column in columns_of(stream) if column.since <= layout]
