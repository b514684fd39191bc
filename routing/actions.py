"""What goes into the engine besides time, and what comes out: the end of an attempt, and actions for the shell."""

from dataclasses import dataclass

from routing.domains import Domain
from routing.health import Transition
from routing.model import Endpoint
from routing.outcomes import Outcome


@dataclass(frozen=True, slots=True)
class Finished:
    """How one attempt ended. Latencies as in `Window.finished`: with CANCELLED, only that of an attempt whose hedge
    answered first. `retry_after_s` comes from a 429's headers, `tenant` is whose key was used.
    """

    endpoint_id: str
    attempt_id: str
    outcome: Outcome
    ttft_s: float | None = None
    reply_s: float | None = None
    output_tokens: int = 0
    generation_s: float = 0.0
    retry_after_s: float | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """Action: send one cheap probe to the endpoint and report it with `probed`."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Transitioned:
    """Action: record the transition."""

    transition: Transition
    endpoint: Endpoint
    snapshot_version: int


@dataclass(frozen=True, slots=True)
class DomainChanged:
    """Action: record that a failure domain went down or came up again, and which endpoints were out because of it."""

    time: float
    domain: Domain
    is_down: bool
    endpoint_ids: tuple[str, ...]
    snapshot_version: int


Action = Probe | Transitioned | DomainChanged
