"""The sections of the configuration about providers and how they are called."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, model_validator

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
    prewarm: Annotated[int, Field(ge=0, le=100)] = 1
    """Connections that are kept ready to every provider, so that a failover does not wait for one; 0 keeps none. Only
    the client `aiohttp` can.
    """
    max_connections: Annotated[int, Field(ge=1)] = 10_000
    """Most connections to all providers together; a request beyond them waits for one, within its own time limits."""
