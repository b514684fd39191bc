"""The policies of the scorecard by name: every product by its published defaults, and routecast's own engine.

The oracle is the arena's, because it alone may see the truth.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from sim.arena.policy import ArenaEndpoint, Policy
from sim.policies.base import ParameterError, with_parameters
from sim.policies.bifrost import Bifrost, BifrostSettings
from sim.policies.consecutive import Consecutive, ConsecutiveSettings
from sim.policies.envoy import Envoy, EnvoySettings
from sim.policies.forecast import ArenaForecaster, ForecastGate
from sim.policies.helicone import Helicone, HeliconeSettings
from sim.policies.litellm import LiteLLM, LiteLLMSettings
from sim.policies.llmgateway import LLMGateway, LLMGatewaySettings
from sim.policies.peak_ewma import PeakEwmaBalancer, PeakEwmaSettings
from sim.policies.prequal import Prequal, PrequalSettings
from sim.policies.routecast import Routecast, routing_policy
from sim.policies.smg import SMG, SMGSettings
from sim.policies.static import Static, StaticSettings
from sim.policies.tuned_breaker import TunedBreaker, TunedBreakerSettings

_Endpoints = Sequence[ArenaEndpoint]
_Parameters = Mapping[str, float]
_Builder = Callable[[_Endpoints, int, _Parameters], Policy]


def _gated_prequal(endpoints: _Endpoints, seed: int, parameters: _Parameters) -> Policy:
    name = "prequal+forecast"
    prequal = Prequal(len(endpoints), seed, with_parameters(PrequalSettings(), name, parameters))
    return ForecastGate(prequal, endpoints, name, prequal.consider)


_BUILDERS: Mapping[str, _Builder] = {
    "static": lambda e, _, p: Static(len(e), with_parameters(StaticSettings(), "static", p)),
    "consecutive": lambda e, _, p: Consecutive(len(e), with_parameters(ConsecutiveSettings(), "consecutive", p)),
    "litellm": lambda e, _, p: LiteLLM(len(e), with_parameters(LiteLLMSettings(), "litellm", p)),
    "envoy": lambda e, _, p: Envoy(len(e), with_parameters(EnvoySettings(), "envoy", p)),
    "bifrost": lambda e, _, p: Bifrost(len(e), with_parameters(BifrostSettings(), "bifrost", p)),
    "llmgateway": lambda e, _, p: LLMGateway(e, with_parameters(LLMGatewaySettings(), "llmgateway", p)),
    "helicone": lambda e, _, p: Helicone(len(e), with_parameters(HeliconeSettings(), "helicone", p)),
    "smg": lambda e, _, p: SMG(len(e), with_parameters(SMGSettings(), "smg", p)),
    "peak-ewma": lambda e, _, p: PeakEwmaBalancer(len(e), with_parameters(PeakEwmaSettings(), "peak-ewma", p)),
    "prequal": lambda e, seed, p: Prequal(len(e), seed, with_parameters(PrequalSettings(), "prequal", p)),
    "tuned-breaker": lambda e, _, p: TunedBreaker(len(e), with_parameters(TunedBreakerSettings(), "tuned-breaker", p)),
    "routecast-reflex": lambda e, _, p: Routecast(e, routing_policy("routecast-reflex", p)),
    "routecast-hedged": lambda e, _, p: Routecast(
        e, routing_policy("routecast-hedged", p), name="routecast-hedged", asks_for_hedges=True
    ),
    "routecast-forecast": lambda e, seed, p: Routecast(
        e, routing_policy("routecast-forecast", p), ArenaForecaster(e, seed=seed), name="routecast-forecast"
    ),
    "prequal+forecast": _gated_prequal,
}

NAMES: tuple[str, ...] = tuple(_BUILDERS)

GRIDS: Mapping[str, Mapping[str, Sequence[float]]] = MappingProxyType(
    {
        "consecutive": {"max_failures": (2, 3, 5), "probe_interval_s": (5, 15, 60), "attempt_timeout_s": (10, 60)},
        "litellm": {"allowed_fails": (1, 3, 10), "cooldown_s": (5, 30, 60), "attempt_timeout_s": (10, 600)},
        "envoy": {
            "consecutive_5xx": (3, 5),
            "base_ejection_s": (10, 30),
            "max_ejection_share": (0.1, 1.0),
            "attempt_timeout_s": (5, 15),
        },
        "bifrost": {"failed_share": (0.05, 0.2), "exploration_share": (0.02, 0.1, 0.25), "attempt_timeout_s": (10, 30)},
        "llmgateway": {"left_below_share": (0.85, 0.95), "margin": (0.05, 0.15), "attempt_timeout_s": (10, 240)},
        "helicone": {"error_share": (0.05, 0.1, 0.3), "window_s": (15, 60), "attempt_timeout_s": (10, 60)},
        "smg": {"max_failures": (3, 5, 10), "ejection_s": (15, 60), "attempt_timeout_s": (10, 1800)},
        "peak-ewma": {"decay_s": (5, 10, 30), "retry_share": (0.2, 1.0), "attempt_timeout_s": (10, 600)},
        "prequal": {"hot_share": (0.6, 0.84, 0.99), "failure_latency_s": (3, 10, 30), "attempt_timeout_s": (10, 60)},
        "tuned-breaker": {
            "error_share": (0.2, 0.5),
            "latency_ratio": (2.5, 4),
            "ejection_s": (10, 30),
            "attempt_timeout_s": (8, 20),
        },
    }
)
"""What may be fitted on calibration days: the values tried for each parameter of a policy."""


def make(
    name: str, endpoints: Sequence[ArenaEndpoint], seed: int, parameters: Mapping[str, float] | None = None
) -> Policy:
    """Return a new policy for `endpoints`, which are in configured order.

    Args:
        name: one of `NAMES`.
        endpoints: at least one; each one's `index` is its place.
        seed: of the policy's own draws, for those that have any.
        parameters: overrides of the published defaults, by name.

    Raises:
        ParameterError: the name or a parameter is unknown, a value is out of range, or the endpoints are not in order.
    """
    if name not in _BUILDERS:
        raise ParameterError(f"unknown policy {name!r}; known policies: {', '.join(NAMES)}")
    if [endpoint.index for endpoint in endpoints] != list(range(len(endpoints))) or not endpoints:
        raise ParameterError("endpoints: expected at least one, with `index` 0, 1, 2 … in this order")
    return _BUILDERS[name](endpoints, seed, parameters or {})
