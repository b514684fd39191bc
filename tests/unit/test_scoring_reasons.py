"""Why a forecast spoke, as history, the command line and ExplainRoute tell it (F-09)."""

import dataclasses
from pathlib import Path

import msgspec

from analytics import queries, report
from routing.engine import Engine
from routing.forecasts import Forecasts
from routing.model import Capability, Catalogue, Endpoint, RouteRequest
from routing.pipeline import decide
from routing.policy import Policy
from scoring.reasons import Contribution, Figure
from service.explain import summary
from service.rpc import convert
from tests.history_records import T0, health, history

WHY = (
    Contribution("latency", 3.25, (Figure("latency_shift_15s", 1.5, 0.0), Figure("slow_share_15s", 0.6, 0.01))),
    Contribution("failures", 0.5, (Figure("failure_rate_15s", 0.08, 0.005),)),
    Contribution("peers", -0.1, ()),
)


def test_history_gives_alarms_back_with_figures(tmp_path: Path) -> None:
    begun = dataclasses.replace(
        health((1.0,), risk=0.8), alarm="canary", propensity=0.1, explanation=msgspec.json.encode(WHY).decode()
    )
    later = dataclasses.replace(health((1.0,), risk=0.9, time=T0 + 1), alarm="canary", propensity=0.1)
    (alarm,) = queries.alarms(history(tmp_path, [begun, later]), T0 - 10, T0 + 10)
    assert (alarm.time, alarm.risk, alarm.alarm, alarm.propensity) == (T0, 0.8, "canary", 0.1)
    assert [reason.group for reason in alarm.explanation] == ["latency", "failures", "peers"]
    assert alarm.explanation[0].figures == {"latency_shift_15s": (1.5, 0.0), "slow_share_15s": (0.6, 0.01)}
    table = report.render_alarms([alarm])
    assert table.row_count == 1
    cells = [str(cell) for column in table.columns for cell in column.cells]
    assert "latency +3.2, failures +0.5" in cells
    assert "latency_shift_15s 1.5 (0); slow_share_15s 0.6 (0.01); failure_rate_15s 0.08 (0.005)" in cells


def test_a_decision_under_an_alarm_says_what_raised_the_risk() -> None:
    endpoints = [
        Endpoint(f"p{i}:m", f"p{i}", "r", "z", "m", "m", order=i, capabilities=frozenset({Capability.CHAT}))
        for i in range(2)
    ]
    engine = Engine(Catalogue.of(endpoints), Policy(), 100.0)
    engine.forecast(Forecasts(100.0, "model-1", 0.5, {"p0:m": 0.8, "p1:m": 0.1}), 100.0)
    engine.tick(100.0)
    decision = decide(engine.snapshot, RouteRequest("m"), 100.0, 0.99)
    assert "forecast risk 0.80 (raised by latency and failures)" in summary(decision, {"p0:m": WHY})
    assert "raised by" not in summary(decision, {})
    first = next(c for c in decision.considered if c.candidate.facts.endpoint.id == "p0:m")
    proto = convert.candidate_to_proto(first, "http://p0", WHY)
    assert [(r.group, r.log_odds) for r in proto.risk_reasons] == [
        ("latency", 3.25),
        ("failures", 0.5),
        ("peers", -0.1),
    ]
    figure = proto.risk_reasons[0].figures[0]
    assert (figure.name, figure.value, figure.normal) == ("latency_shift_15s", 1.5, 0.0)
