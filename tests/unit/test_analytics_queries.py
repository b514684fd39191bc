"""Each question is asked of a history made by hand, whose answer can be worked out on paper."""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console

from analytics import queries, report
from analytics.errors import HistoryError
from analytics.records import Record
from analytics.store import connect
from tests.history_records import attempt, health, history, request, transition, usage

T0 = 1_750_000_000.0
UNTIL = T0 + 1_000_000.0


def only_failover(root: Path, records: Iterable[Record]) -> queries.Failover:
    rows = queries.failovers(history(root, records), T0, UNTIL)
    assert len(rows) == 1
    return rows[0]


def test_f16_a_departure_before_the_outage_has_a_positive_lead(tmp_path: Path) -> None:
    """F-16: failover analytics tell cause, duration, lead time and the requests that were moved."""
    served_before = [request(time=T0 - 1 - i, endpoint=endpoint) for i in range(30) for endpoint in ("a", "a", "b")]
    served_meanwhile = [request(time=T0 + 1 + i, endpoint="b") for i in range(60)]
    row = only_failover(
        tmp_path,
        [
            transition(time=T0, to_state="degraded", event="forecast"),
            transition(time=T0 + 10, to_state="ejected"),
            transition(time=T0 + 60, to_state="probing", event="ejection_over"),
            transition(time=T0 + 90, to_state="canary", event="probes_passed"),
            transition(time=T0 + 120, to_state="active", event="plan_done"),
            attempt(time=T0 + 8, outcome="server_error", kind="probe"),
            attempt(time=T0 + 9, outcome="timeout"),
            attempt(time=T0 + 2, outcome="server_error", endpoint="b"),
            *served_before,
            *served_meanwhile,
        ],
    )
    assert (row.endpoint, row.state, row.event, row.actor) == ("a", "degraded", "forecast", "reflex")
    assert (row.metric, row.value, row.threshold) == ("failure_rate", 0.5, 0.3)
    assert (row.start, row.end, row.duration_s, row.lead_s) == (T0, T0 + 120, 120.0, 8.0)
    assert row.requests_moved == 40  # two thirds of sixty


def test_a_reaction_to_failures_has_a_negative_lead(tmp_path: Path) -> None:
    records = [attempt(time=T0 - s, outcome="timeout") for s in (31, 20, 5)] + [attempt(time=T0 + 4, outcome="timeout")]
    row = only_failover(tmp_path, [*records, transition(time=T0, to_state="ejected")])
    assert row.lead_s == -20.0
    assert (row.end, row.duration_s, row.requests_moved) == (None, None, 0)


def test_a_departure_nothing_followed_has_no_lead(tmp_path: Path) -> None:
    late = attempt(time=T0 + 301, outcome="timeout")
    callers_own = attempt(time=T0 + 1, outcome="client_error")
    limited = attempt(time=T0 + 1, outcome="rate_limited")
    row = only_failover(tmp_path, [late, callers_own, limited, transition(time=T0, to_state="degraded")])
    assert row.lead_s is None


def test_f17_a_quota_departure_is_judged_by_its_429s(tmp_path: Path) -> None:
    """F-17: a rate limit is told apart from an outage."""
    records = [attempt(time=T0 - 1, outcome="server_error"), attempt(time=T0 + 3, outcome="rate_limited")]
    row = only_failover(tmp_path, [*records, transition(time=T0, to_state="degraded", event="limited")])
    assert row.lead_s == 3.0


def test_every_departure_is_one_row_however_it_went_on(tmp_path: Path) -> None:
    states = ["ejected", "probing", "ejected", "probing", "canary", "active", "degraded", "active", "ejected"]
    records = [transition(time=T0 + 10 * i, to_state=state) for i, state in enumerate(states)]
    other_replica_saw_it_too = [transition(time=T0 + 80, to_state="ejected")]
    rows = queries.failovers(history(tmp_path, [*records, *other_replica_saw_it_too]), T0, UNTIL)
    assert [(row.start - T0, row.duration_s) for row in rows] == [(0, 50.0), (60, 10.0), (80, None)]
    assert [row.start - T0 for row in queries.failovers(connect(tmp_path), T0 + 30, T0 + 70)] == [60.0]


def test_providers_reports_every_endpoint(tmp_path: Path) -> None:
    records: list[Record] = [attempt(time=T0 + i, ttft_ms=float(i)) for i in range(101)]
    records += [
        attempt(time=T0 + 1, outcome=o) for o in ("timeout", "timeout", "rate_limited", "client_error", "cancelled")
    ]
    records += [attempt(time=T0 + 1, kind="probe", ttft_ms=9_999.0), attempt(time=T0 - 1, outcome="timeout")]
    records += [request(time=T0 + 1, cost_usd=0.25)] * 3 + [request(time=T0 + 1, endpoint="b")]
    records += [request(time=T0 + 1, endpoint="", status="no_endpoint")]
    records += [
        health(time=T0 + 1, endpoint="c", state="active"),
        transition(time=T0 - 9, endpoint="b", to_state="ejected"),
    ]
    records += [health(time=T0 + 5), transition(time=T0 + 6, to_state="degraded")]
    a, b, c = queries.providers(history(tmp_path, records), T0, UNTIL)
    assert (a.endpoint, a.requests, a.share, a.attempts, a.probes, a.state) == ("a", 3, 0.75, 106, 1, "degraded")
    assert a.success_rate == pytest.approx(101 / 104)
    assert a.outcomes == {"ok": 101, "timeout": 2, "cancelled": 1, "client_error": 1, "rate_limited": 1}
    assert (a.ttft_p50_ms, a.ttft_p95_ms, a.ttft_p99_ms) == pytest.approx((50.0, 95.0, 99.0))
    assert (a.latency_p50_ms, a.cost_usd) == (200.0, 0.75)
    assert (b.endpoint, b.requests, b.attempts, b.success_rate, b.ttft_p50_ms, b.state) == (
        "b",
        1,
        0,
        None,
        None,
        "ejected",
    )
    assert (c.endpoint, c.state, c.outcomes, c.share) == ("c", "active", {}, 0.0)


def test_forecasts_are_judged_by_what_followed(tmp_path: Path) -> None:
    """Attempts every second for 1,000 s; from 500 to 509 all fail.

    Four of 31 are above 10 %, so it is degraded from 503 (fourth failure) to 536 (506 to 509 are in the last 30 s), and
    a sample is positive from 443 until 536.
    """
    attempts = [attempt(time=T0 + s, outcome="timeout" if 500 <= s < 510 else "ok") for s in range(1_000)]
    risks = {100: 0.9, 400: 0.1, 450: 0.8, 470: 0.2, 480: 0.6, 700: 0.0, 990: 0.9}
    samples = [health(time=T0 + t, risk=risk) for t, risk in risks.items()]
    [row] = queries.forecasts(history(tmp_path, [*attempts, *samples]), T0, T0 + 1_000)
    assert (row.endpoint, row.forecaster, row.samples, row.judged, row.alarms) == ("a", "f1", 7, 6, 4)
    assert row.base_rate == 0.5
    assert row.precision == pytest.approx(2 / 3)
    assert row.recall == pytest.approx(2 / 3)
    brier = (0.81 + 0.01 + 0.04 + 0.64 + 0.16 + 0.0) / 6
    assert row.brier == pytest.approx(brier)
    assert row.brier_skill == pytest.approx(1 - brier / 0.25)
    assert (row.onsets, row.onsets_foreseen, row.median_lead_s) == (1, 1, 53.0)
    [strict] = queries.forecasts(connect(tmp_path), T0, T0 + 1_000, threshold=0.95)
    assert (strict.alarms, strict.precision, strict.recall, strict.onsets_foreseen) == (0, None, 0.0, 0)


def test_summary_counts_the_period(tmp_path: Path) -> None:
    records: list[Record] = [request(time=T0 + i, latency_ms=float(i), ttft_ms=None, cost_usd=0.5) for i in range(101)]
    records += [request(time=T0, failed_over=True, latency_ms=500.0, ttft_ms=400.0)] * 2
    records += [request(time=T0, status="all_failed", latency_ms=9_999.0), request(time=T0 - 1)]
    records += [transition(time=T0 + 1, to_state="ejected")]
    row = queries.summary(history(tmp_path, records), T0, UNTIL)
    assert (row.requests, row.failed, row.failed_over, row.failovers) == (104, 1, 2, 1)
    assert (row.latency_p50_ms, row.failed_over_latency_p99_ms, row.failed_over_ttft_p50_ms) == (51.0, 500.0, 400.0)
    assert (row.input_tokens, row.output_tokens, row.cost_usd) == (104 * 2**40, 0, 50.5)


def test_an_empty_history_answers_every_question(tmp_path: Path) -> None:
    connection = connect(tmp_path)
    assert queries.failovers(connection, T0, UNTIL) == []
    assert queries.providers(connection, T0, UNTIL) == []
    assert queries.forecasts(connection, T0, UNTIL) == []
    row = queries.summary(connection, T0, UNTIL)
    assert (row.requests, row.latency_p50_ms, row.cost_usd) == (0, None, 0.0)


def test_impossible_periods_are_named(tmp_path: Path) -> None:
    connection = connect(tmp_path)
    with pytest.raises(HistoryError, match="since <= until"):
        queries.summary(connection, UNTIL, T0)
    with pytest.raises(HistoryError, match="unix seconds"):
        queries.summary(connection, T0, float("inf"))


def test_c05_usage_is_summed_by_who_pays_and_who_served(tmp_path: Path) -> None:
    entries = [
        usage(time=T0 + n, tenant=tenant, cost_usd=cost)
        for n, (tenant, cost) in enumerate((("a", 0.25), ("b", 0.1), ("a", None), ("a", 0.5)))
    ]
    connection = history(tmp_path, [*entries, usage(time=UNTIL, tenant="later", cost_usd=9.0)])
    rows = queries.usage(connection, T0, UNTIL)
    assert [(row.tenant, row.requests, row.uncounted) for row in rows] == [("a", 3, 1), ("b", 1, 0)]
    assert [row.cost_usd for row in rows] == [pytest.approx(0.75), pytest.approx(0.1)]
    assert (rows[0].input_tokens, rows[0].output_tokens) == (15, 21)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.render_usage(rows))
    assert "0.750000" in console.export_text()


def test_reports_show_the_figures_and_a_dash_for_none(tmp_path: Path) -> None:
    attempts = [attempt(time=T0 + 5, outcome="timeout"), attempt(time=T0 + 1)]
    samples = [health(time=T0 + 1, risk=0.25)]
    connection = history(tmp_path, [transition(time=T0, to_state="ejected"), *attempts, *samples, request(time=T0 + 1)])
    console = Console(width=200, record=True, file=io.StringIO())
    departures = queries.failovers(connection, T0, UNTIL)
    console.print(report.render_failovers(departures))
    console.print(report.render_providers(queries.providers(connection, T0, UNTIL)))
    console.print(report.render_forecasts(queries.forecasts(connection, T0, UNTIL)))
    console.print(report.render_summary(queries.summary(connection, T0, UNTIL)))
    console.print(report.render_rows(["answer"], [(None,), (42,), ('{"a": [null, 7]}',)]))
    text = console.export_text()
    for figure in (
        "failure_rate 0.5 (threshold 0.3)",
        "ongoing",
        "+5.0 s",
        "timeout:1",
        "50.0 %",
        "0.250",
        "42",
        "–",
        "[null, 7]",
    ):
        assert figure in text
    [record] = json.loads(json.dumps(report.as_dicts(departures)))
    assert record["lead_s"] == 5.0
    assert record["end"] is None
