"""From the configuration to adapters and the transport they share. The one place that knows every kind of provider."""

import ssl

from service.config_upstream import Provider, ProviderKind, Upstream
from service.providers import anthropic, azure
from service.providers.aiohttp_transport import AiohttpTransport
from service.providers.anthropic import AnthropicMessages
from service.providers.azure import AzureAddresses
from service.providers.base import Adapter
from service.providers.httpx_transport import HttpxTransport
from service.providers.openai_compatible import OpenAICompatible
from service.providers.transport import Transport


def transport_for(upstream: Upstream) -> Transport:
    """Return a new transport. Must be called within a running event loop; the caller closes it."""
    tls = ssl.create_default_context()
    if not upstream.verify_tls:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    make = AiohttpTransport if upstream.client == "aiohttp" else HttpxTransport
    return make(tls, max_connections=upstream.max_connections)


def adapter_for(provider: Provider, transport: Transport) -> Adapter:
    """Return the adapter of a provider."""
    api_key = provider.api_key.get_secret_value() if provider.api_key else ""
    headers = {name: value.get_secret_value() for name, value in provider.headers.items()}
    if provider.kind is ProviderKind.ANTHROPIC:
        return AnthropicMessages(
            provider.base_url,
            transport,
            api_key=api_key,
            headers=headers,
            api_version=provider.api_version or anthropic.API_VERSION,
            max_tokens=provider.max_tokens,
        )
    addresses = None
    if provider.kind is ProviderKind.AZURE:
        addresses = AzureAddresses(provider.api_version or azure.API_VERSION)
    return OpenAICompatible(provider.base_url, transport, api_key=api_key, headers=headers, addresses=addresses)
