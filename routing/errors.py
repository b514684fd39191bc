"""Every error the core raises, in one tree.

RoutingError
├── FieldError         a value is out of its range; names the field
│   ├── PolicyError    of a policy
│   └── RequestError   of a request
├── CatalogueError     the catalogue contradicts itself; names the entry
├── UnknownModelError  no endpoint serves that model; carries the known ones
└── UnknownEndpointError

An error's `args` are what it was made of, and its text is made when it is read: so it can be sent between processes.
"""

from collections.abc import Sequence


class RoutingError(Exception):
    """Base of all errors raised by the core."""


class FieldError(RoutingError, ValueError):
    """A value is out of its range."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(field, value, expected)
        self.field = field

    def __str__(self) -> str:
        field, value, expected = self.args
        return f"{field} = {value!r}: expected {expected}"


class PolicyError(FieldError):
    """A policy value is out of its range."""


class RequestError(FieldError):
    """A value of a request is out of its range."""


class CatalogueError(RoutingError):
    """The catalogue contradicts itself."""


class UnknownModelError(RoutingError):
    """No endpoint of the catalogue serves the model."""

    def __init__(self, model: str, known: Sequence[str]) -> None:
        super().__init__(model, known)
        self.model = model
        self.known = tuple(known)

    def __str__(self) -> str:
        return f"unknown model {self.model!r}; known models: {', '.join(self.known) or 'none'}"


class UnknownEndpointError(RoutingError):
    """The catalogue has no endpoint of that id."""

    def __init__(self, endpoint_id: str) -> None:
        super().__init__(endpoint_id)
        self.endpoint_id = endpoint_id

    def __str__(self) -> str:
        return f"unknown endpoint {self.endpoint_id!r}"
