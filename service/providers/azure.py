"""Azure OpenAI: OpenAI's wire format at a deployment's own path, with an api-version and an api-key header.

The rule of this file: it only knows addresses. What else Azure adds (`prompt_filter_results` in a first chunk without
choices, `content_filter_results` beside each delta, `innererror` in a refusal) is JSON that passes through unchanged.
"""

from collections.abc import Mapping
from urllib.parse import quote

from service.providers.base import Operation
from service.providers.openai_wire import PATHS

API_VERSION = "2024-10-21"  # the last dated version of the deployment API that is generally available


class AzureAddresses:
    """Addresses below a resource's endpoint, as in "https://my-resource.openai.azure.com".

    A provider model is the name of a deployment. Responses have no deployment path: their body names it.

    Args:
        api_version: the `api-version` of every request; a caller's own in the query does not replace it.
    """

    def __init__(self, api_version: str = API_VERSION) -> None:
        self._version = f"api-version={quote(api_version, safe='')}"

    def credentials(self, api_key: str) -> Mapping[str, str]:
        """See `Addresses`."""
        return {"api-key": api_key}

    def locate(self, operation: Operation, provider_model: str, query: str) -> tuple[str, str]:
        """See `Addresses`."""
        others = [part for part in query.split("&") if part and not part.startswith("api-version=")]
        where = "/openai"
        if operation is not Operation.RESPONSES:
            where = f"/openai/deployments/{quote(provider_model, safe='')}"
        return f"{where}{PATHS[operation]}", "&".join([*others, self._version])

    def models(self) -> str:
        """See `Addresses`. Azure lists the models of the resource here; its deployments only in the management API."""
        return f"/openai/models?{self._version}"
