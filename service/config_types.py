"""What the sections of the configuration are made of: strictness, and values that check themselves."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
_SLUG = r"^[a-z0-9][a-z0-9._-]*$"

Slug = Annotated[str, StringConstraints(pattern=_SLUG, max_length=64)]
ModelId = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^\S+$")]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _listen_address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isdigit() and int(port) <= 65535):
        raise ValueError("expected host:port, for example 127.0.0.1:8088 (port 0 takes any free one)")
    return value


def _base_url(value: str) -> str:
    if not re.match(r"^https?://[^/\s?#]+(/[^\s?#]*)?$", value):
        raise ValueError("expected an http(s) URL without query, for example https://api.example.com/v1")
    return value.rstrip("/")


Address = Annotated[str, AfterValidator(_listen_address)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]


class Section(BaseModel):
    """A part of the configuration: unknown fields are refused, values are frozen."""

    model_config = STRICT
