"""The sections of the configuration about providers and how they are called."""

import importlib.util
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from service.config_types import BaseUrl, Section, Slug


class ProviderKind(StrEnum):
    """What a provider speaks."""

    OPENAI = "openai"
    AZURE = "azure"
    ANTHROPIC = "anthropic"


class Provider(Section):
    """A provider in one region. The same company in two regions is two entries."""

    name: Slug
    """Unique name, used in records and in `preferred_provider`."""
    kind: ProviderKind = ProviderKind.OPENAI
    """What it speaks: OpenAI's wire format (as most do), Azure OpenAI's, or Anthropic's Messages API."""
    base_url: BaseUrl
    """Root of its API: for `openai` up to and including /v1, for `azure` and `anthropic` the host alone."""
    api_key: SecretStr | None = None
    """Reference to its key, as ${NAME} of an environment variable. Never the key itself."""
    api_version: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")] | None = None
    """Version of the API that is asked for, of `azure` and `anthropic`; a current one when absent."""
    max_tokens: Annotated[int, Field(ge=1)] = 4096
    """Limit of output tokens for requests that set none; only `anthropic` demands one."""
    region: Slug = "default"
    """Region it runs in."""
    zone: Slug = "default"
    """Zone within the region."""
    company: Slug | None = None
    """Who runs it, when several entries are one company's regions: they fail over together when it is down. The entry
    itself when absent.
    """
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Further headers sent with every request; treated as secrets."""

    @model_validator(mode="after")
    def _versioned(self) -> Self:
        if self.kind is ProviderKind.OPENAI and self.api_version is not None:
            raise ValueError("expected no api_version: only `azure` and `anthropic` have one")
        return self


class Upstream(Section):
    """How providers are called."""

    client: Literal["aiohttp", "httpx"] = "aiohttp"
    """HTTP client of the request path; docs/decisions/dependencies.md says why aiohttp."""
    verify_tls: bool = True
    """Check the certificates of providers."""
    http2: bool = False
    """Speak HTTP/2 to providers that offer it; only with the client `httpx` and the extra `http2`."""
    prewarm: Annotated[int, Field(ge=0, le=100)] = 1
    """Connections that are kept ready to every provider, so that a failover does not wait for one; 0 keeps none. Only
    the client `aiohttp` can.
    """
    max_connections: Annotated[int, Field(ge=1)] = 10_000
    """Most connections to all providers together; a request beyond them waits for one, within its own time limits."""

    @field_validator("http2", mode="after")
    @classmethod
    def _installed(cls, http2: bool) -> bool:
        if http2 and importlib.util.find_spec("h2") is None:
            raise ValueError("expected the extra `http2` to be installed: pip install 'routecast[http2]'")
        return http2

    @model_validator(mode="after")
    def _spoken(self) -> Self:
        if self.http2 and self.client != "httpx":
            raise ValueError("expected `client: httpx` with `http2: true`")
        return self
