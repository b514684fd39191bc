"""Records to columns: the only place where Python values become NumPy arrays and DuckDB expressions.

Rule of this file: strict. A value of the wrong type raises `TypeError` or `ValueError` here, before
any file exists, so that the writer can single out the row that carries it. Needs neither pyarrow nor pandas.
"""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from analytics.records import Column, Record, columns_of

_ARRAY_CODES = {"DOUBLE": "d", "TIMESTAMP": "d", "BIGINT": "q"}


def to_columns(stream: str, records: Sequence[Record]) -> dict[str, npt.NDArray[Any]]:
    """One array per column of `stream`, each of length `len(records)`; NULLs are masked.

    Raises `TypeError` or `ValueError` naming the column when a value does not fit its type.
    """
    result = {}
    for column in columns_of(stream):
        try:
            result[column.name] = _convert(column, [getattr(record, column.name) for record in records])
        except (TypeError, ValueError, OverflowError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{stream}.{column.name}: expected {column.duckdb_type}: {error}") from error
    return result


def select_list(stream: str) -> str:
    """SQL expressions that read the arrays of `to_columns` back with the exact types of `stream`.

    DuckDB reads a NaN inside a NumPy array as NULL; where a column cannot be NULL, that NULL is the NaN it came from.
    """
    return ", ".join(f'{_expression(column)} AS "{column.name}"' for column in columns_of(stream))


def _expression(column: Column) -> str:
    cast = f'CAST("{column.name}" AS {column.duckdb_type})'
    if column.duckdb_type == "DOUBLE[]":
        return f"list_transform({cast}, lambda x: coalesce(x, CAST('NaN' AS DOUBLE)))"
    if column.duckdb_type == "DOUBLE" and not column.nullable:
        return f"coalesce({cast}, CAST('NaN' AS DOUBLE))"
    return cast


def _convert(column: Column, values: list[Any]) -> npt.NDArray[Any]:
    match column.duckdb_type:
        case "VARCHAR":
            "".join(values).encode()  # refuses what is no str, and lone surrogates, in one pass
            return _objects(values)
        case "BOOLEAN":
            return _flags(column, values)
        case "DOUBLE[]":
            return _objects([array("d", value).tolist() for value in values])
        case "TIMESTAMP":
            return _timestamps(_numbers(column, values))
        case _:
            return _numbers(column, values)


def _numbers(column: Column, values: list[Any]) -> npt.NDArray[Any]:
    code = _ARRAY_CODES[column.duckdb_type]
    if not column.nullable:
        return np.array(array(code, values))
    mask = np.fromiter((value is None for value in values), dtype=np.bool_, count=len(values))
    filled = np.array(array(code, [0 if value is None else value for value in values]))
    return np.ma.MaskedArray(filled, mask=mask)


def _flags(column: Column, values: list[Any]) -> npt.NDArray[Any]:
    if not all(isinstance(value, bool) or (value is None and column.nullable) for value in values):
        raise TypeError("a value is not a bool")
    flags = np.array([bool(value) for value in values], dtype=np.bool_)
    return np.ma.MaskedArray(flags, mask=[value is None for value in values]) if column.nullable else flags


def _timestamps(seconds: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # Microseconds since 1970 must fit; the bound is the year 9999, the last that Python's datetime can show.
    if not np.all((seconds >= 0) & (seconds < 253_402_300_800)):
        raise ValueError("a time is not unix seconds within the years 1970 to 9999")
    return np.round(seconds * 1e6).astype(np.int64).view("datetime64[us]")


def _objects(values: Sequence[Any]) -> npt.NDArray[Any]:
    # Element by element: np.array would make a matrix of lists that happen to be equally long.
    result = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        result[index] = value
    return result
