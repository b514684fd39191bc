"""Every error analytics raises, in one tree.

HistoryError           history cannot be read as asked; says which file or value, and what was expected
├── ForeignFileError   a file of the history is damaged or is none of ours; carries its path
│   └── NewerLayoutError  it is ours, but from a later version, and whole
├── FeatureShapeError  samples of one feature set differ in length
├── QueryRefusedError  the SQL text is not a single reading statement
└── QueryTimeoutError  the statement ran for longer than it was given
"""

from pathlib import Path


class HistoryError(Exception):
    """Base of all errors raised by analytics."""


class ForeignFileError(HistoryError):
    """A file of the history is damaged or does not have the columns of its stream. Can be sent between processes."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class NewerLayoutError(ForeignFileError):
    """A file of the history was written by a later version of routecast: there is nothing wrong with it."""


class FeatureShapeError(HistoryError):
    """Samples of one feature set differ in length."""


class QueryRefusedError(HistoryError):
    """The SQL text is not a single reading statement."""


class QueryTimeoutError(HistoryError):
    """The statement ran for longer than it was given."""
