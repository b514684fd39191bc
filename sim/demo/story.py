"""What the demo tells: the scenario at the asked speed, which of its faults is which chapter, and the service's
configuration to go with it.

The rule of this file: it is pure. Seconds of the story count from the start of the scenario's clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.faults import Fault, FaultKind
from sim.scenario import Model, ModelKind, Provider, Scenario, load_scenario

SCENARIO_FILE = Path(__file__).parents[1] / "scenarios" / "demo.yaml"
FULL_SCALE, FAST_SCALE = 1.0, 0.25

# An endpoint is compared with itself as it was more than 15 s ago: by the middle of even a fast ramp that has to be
# its quiet self.
_QUIET_S = 13.0
# However fast the story, a limited endpoint starts slowly: pause, then doublings until it has all its traffic back.
_QUOTA_BACK_S = 27.0


class StoryError(ValueError):
    """The scenario cannot be told as this story; says what is missing."""


@dataclass(frozen=True, slots=True)
class Story:
    """A scenario with its three chapters; `warm_up_s` of quiet come before its clock starts."""

    scenario: Scenario
    scale: float
    warm_up_s: float
    ramp: Fault
    outage: Fault
    storm: Fault
    chat: str
    embeddings: str

    @property
    def hard_outage_s(self) -> float:
        """When the ramp turns into an outage."""
        return self.ramp.end_s - (self.ramp.outage_s or 0.0)

    def active_faults(self, t_s: float) -> list[Fault]:
        """What is being done to the providers at `t_s`."""
        return [fault for fault in self.scenario.faults if fault.active_at(t_s)]

    def endpoint(self, fault: Fault) -> str:
        """The chat endpoint that a chapter's fault strikes, by the service's naming."""
        return f"{fault.provider}:{self.chat}"

    def endpoints(self) -> list[str]:
        """The chat endpoints in the configured order, the primary first."""
        return [f"{provider.name}:{self.chat}" for provider in self.scenario.providers]


def load_story(scale: float, path: Path = SCENARIO_FILE) -> Story:
    """Read the scenario and find its chapters.

    Raises:
        ScenarioError: the file is no sound scenario.
        StoryError: it lacks a chapter.
    """
    scenario = load_scenario(path).scaled(scale)
    ramp = _only(scenario, FaultKind.LATENCY_RAMP)
    if ramp.outage_s is None:
        raise StoryError("the latency_ramp has no outage_s, expected it to end in an outage")
    storm = _only(scenario, FaultKind.RATE_LIMIT)
    return Story(
        scenario=replace(scenario, duration_s=max(scenario.duration_s, storm.end_s + _QUOTA_BACK_S)),
        scale=scale,
        warm_up_s=max(0.0, _QUIET_S - ramp.at_s),
        ramp=ramp,
        outage=_only(scenario, FaultKind.SERVER_ERROR),
        storm=storm,
        chat=_common_model(scenario, ModelKind.CHAT),
        embeddings=_common_model(scenario, ModelKind.EMBEDDINGS),
    )


def _only(scenario: Scenario, kind: FaultKind) -> Fault:
    found = [fault for fault in scenario.faults if fault.kind is kind and fault.provider is not None]
    if len(found) != 1:
        raise StoryError(f"expected exactly one {kind} on one provider, found {len(found)}")
    return found[0]


def _common_model(scenario: Scenario, kind: ModelKind) -> str:
    per_provider = [{model.id for model in provider.models if model.kind is kind} for provider in scenario.providers]
    common = set.intersection(*per_provider)
    if len(common) != 1:
        raise StoryError(f"expected one {kind} model that all providers serve, found {len(common)}")
    return common.pop()


def service_config(story: Story, ports: Mapping[str, int], data_dir: Path) -> dict[str, Any]:
    """The configuration of the service in front of the simulated providers, which listen on `ports`.

    Ejections, probes and canary steps keep the story's pace, so that a fast story also recovers fast.
    """
    pace, providers = story.scale, story.scenario.providers
    return {
        "server": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "drain_s": 5.0},
        "data_dir": str(data_dir),
        "replica": "demo",
        "providers": [
            {
                "name": provider.name,
                "base_url": f"http://127.0.0.1:{ports[provider.name]}/v1",
                "region": provider.region,
                "zone": provider.zone,
            }
            for provider in providers
        ],
        "models": [
            {"id": story.chat, "endpoints": _endpoints(providers, story.chat)},
            {
                "id": story.embeddings,
                "capabilities": ["embeddings"],
                "endpoints": _endpoints(providers, story.embeddings),
            },
        ],
        "policy": {
            "reflex": {"ejection_s": 6.0 * pace, "max_ejection_s": 12.0 * pace},
            "failback": {
                "probe_interval_s": max(0.25, pace),
                "step_s": 5.0 * pace,
                "min_hold_s": 12.0 * pace,
            },
        },
        # On a busy machine an idle class may get no time for seconds, and the story does not wait.
        "scoring": {"tick_s": max(0.5, pace), "scheduling": "normal", "explore": 0.0},
        "history": {"flush_s": 0.5},
    }


def _endpoints(providers: tuple[Provider, ...], model_id: str) -> list[dict[str, Any]]:
    return [_endpoint(provider, next(m for m in provider.models if m.id == model_id)) for provider in providers]


def _endpoint(provider: Provider, model: Model) -> dict[str, Any]:
    return {
        "provider": provider.name,
        "provider_model": model.provider_model_id,
        "context_window_tokens": model.context_window,
        "input_usd_per_mtok": model.input_per_million_usd,
        "output_usd_per_mtok": model.output_per_million_usd,
    }
