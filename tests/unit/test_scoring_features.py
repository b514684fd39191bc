import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.outcomes import Outcome
from routing.window import Window
from scoring import features
from scoring.features import FEATURE_SET, FEATURES, NAMES, Member, in_domain, matrix, peer_context
from scoring.reading import Reading, signed_deviance, upper_tail
from tools import features as tools_features

START = 1_700_000_000.0

_finite = st.floats(min_value=0.0, max_value=3600.0, allow_nan=False)
_event = st.tuples(
    st.sampled_from(["started", "first_byte", "finished"]),
    st.floats(min_value=0.0, max_value=400.0, allow_nan=False),
    st.integers(min_value=0, max_value=20),
    st.sampled_from(list(Outcome)),
    st.none() | _finite,
    st.none() | _finite,
    st.integers(min_value=0, max_value=100_000),
    _finite,
)


def vector(window: Window, now: float) -> list[float]:
    """The features of an endpoint without peers."""
    row: list[float] = matrix([Member("a", "eu")], [window], now)[0].tolist()
    return row


def quiet_then(window: Window, quiet_s: int, then: float, for_s: int, outcome: Outcome = Outcome.OK) -> float:
    """Ten attempts per second of 100 ms for `quiet_s`, then of `then` seconds ending in `outcome` for `for_s`."""
    now = START
    for i in range(10 * (quiet_s + for_s)):
        now = START + i / 10
        quiet = i < 10 * quiet_s
        window.started(str(i), now)
        window.first_byte(str(i), now)
        window.finished(
            str(i), Outcome.OK if quiet else outcome, now, ttft_s=(0.1 if quiet else then) * (1 + 0.1 * (i % 3))
        )
    return now


@settings(max_examples=150, deadline=None)
@given(st.lists(_event, max_size=80), st.floats(min_value=0.0, max_value=5000.0, allow_nan=False))
def test_every_observation_sequence_gives_finite_values(events: list[tuple[object, ...]], later: float) -> None:
    window, now = Window(), START
    for kind, step, name, outcome, ttft_s, reply_s, tokens, generation_s in events:
        now += float(str(step))
        if kind == "started":
            window.started(str(name), now)
        elif kind == "first_byte":
            window.first_byte(str(name), now)
        else:
            assert isinstance(outcome, Outcome)
            assert isinstance(tokens, int)
            window.finished(
                str(name),
                outcome,
                now,
                ttft_s=ttft_s if isinstance(ttft_s, float) else None,
                reply_s=reply_s if isinstance(reply_s, float) else None,
                output_tokens=tokens,
                generation_s=float(str(generation_s)),
            )
    values = vector(window, now + later)
    assert len(values) == len(FEATURES)
    assert all(math.isfinite(value) for value in values), dict(zip(NAMES, values, strict=True))


def test_a_latency_ramp_shows_in_shift_z_and_slope() -> None:
    window = Window()
    now = quiet_then(window, 400, 0.3, 10)
    row = dict(zip(NAMES, vector(window, now), strict=True))
    assert 0.5 < row["latency_shift_15s"] < math.log(3) + 0.05
    assert row["latency_shift_15s"] > row["latency_shift_60s"] > row["latency_shift_300s"] > 0
    assert row["latency_z_60s"] > 5
    assert row["latency_slope_15_60s"] > 0
    assert row["slow_share_15s"] > 0.4


def test_features_are_relative_to_the_endpoint_itself() -> None:
    rows = []
    for ttft_s in (0.05, 0.5):
        window = Window()
        for i in range(4000):
            window.started(str(i), START + i)
            window.first_byte(str(i), START + i)
            window.finished(str(i), Outcome.OK, START + i, ttft_s=ttft_s * (1 + 0.1 * (i % 3)))
        rows.append(dict(zip(NAMES, vector(window, START + 4000), strict=True)))
    # How many attempts should be in flight does follow from the latency (Little's law).
    expected_in_flight = [row.pop("in_flight_excess") for row in rows]
    assert rows[0] == pytest.approx(rows[1], abs=1e-9)
    assert expected_in_flight[1] < expected_in_flight[0] < 0


def test_failures_and_rate_limits_are_told_apart() -> None:
    failing, limited = Window(), Window()
    for window, outcome in ((failing, Outcome.SERVER_ERROR), (limited, Outcome.RATE_LIMITED)):
        now = quiet_then(window, 300, 0.1, 5, outcome)
        row = dict(zip(NAMES, vector(window, now), strict=True))
        assert (row["failures_15s"] > 5) == (window is failing)
        assert (row["limited_15s"] > 5) == (window is limited)


def test_an_attempt_that_hangs_is_seen_before_it_times_out() -> None:
    window = Window()
    now = quiet_then(window, 100, 0.1, 0)
    for i in range(5):
        window.started(f"hung-{i}", now)
    row = dict(zip(NAMES, vector(window, now + 5), strict=True))
    assert row["waiting_ratio"] > 3
    assert row["overdue"] == pytest.approx(float(signed_deviance(np.array(5.0), np.array(0.5))))
    assert row["in_flight_excess"] > 0.5


def busy(sigma: float, per_s: int, seed: int) -> tuple[Window, float]:
    """An endpoint with `per_s` streams a second for 600 s, whose log-normal latency has a median of 1 s."""
    rng, window = np.random.default_rng(seed), Window()
    sent = START + np.arange(600 * per_s) / per_s
    waits = np.exp(sigma * rng.standard_normal(len(sent)))
    events = sorted(
        event for i, (at, wait) in enumerate(zip(sent, waits, strict=True)) for event in ((at, 0, i), (at + wait, 1, i))
    )
    for now, kind, i in events:
        if now >= START + 600:
            break
        if kind == 0:
            window.started(str(i), now)
        else:
            window.first_byte(str(i), now)
            window.finished(str(i), Outcome.OK, now, ttft_s=float(waits[i]))
    return window, START + 600


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("sigma", "per_s"), [(0.2, 2), (0.2, 20), (1.0, 2), (1.0, 20), (1.4, 20)])
def test_waiting_and_slow_answers_are_relative_to_the_endpoints_own_spread(sigma: float, per_s: int, seed: int) -> None:
    """F-10: many slow answers of a busy endpoint whose latency is spread widely are no sign of trouble."""
    row = dict(zip(NAMES, vector(*busy(sigma, per_s, seed)), strict=True))
    assert row["slow_share_15s"] == pytest.approx(0.0, abs=0.15)
    assert row["slow_share_300s"] == pytest.approx(0.0, abs=0.05)
    assert row["overdue"] < 3
    assert row["waiting_ratio"] < 1.3


def test_slow_answers_of_a_steady_endpoint_do_show() -> None:
    window, now = busy(0.2, 20, 1)
    for i in range(60):
        window.finished(f"slow-{i}", Outcome.OK, now + i / 60, ttft_s=4.0)
    row = dict(zip(NAMES, vector(window, now + 1), strict=True))
    assert row["slow_share_15s"] > 0.15


@pytest.mark.parametrize(
    ("z", "tail"), [(0.0, 0.5), (1.0, 0.158655254), (-1.0, 0.841344746), (3.0, 0.001349898), (40.0, 0.0)]
)
def test_the_upper_tail_is_that_of_the_normal_distribution(z: float, tail: float) -> None:
    assert upper_tail(np.array([z])) == pytest.approx([tail], abs=1e-7)


def test_reading_does_not_change_the_window() -> None:
    window = Window()
    now = quiet_then(window, 90, 0.2, 10)
    assert vector(window, now + 7) == vector(window, now + 7)
    assert vector(window, now) == vector(window, now)


def test_an_endpoint_without_evidence_is_outside_the_domain() -> None:
    idle, young, known = Window(), Window(), Window()
    now = quiet_then(known, 60, 0.1, 0)
    young.started("1", now)
    young.finished("1", Outcome.OK, now, ttft_s=0.1)
    members = [Member(f"p{i}", "r") for i in range(3)]
    assert in_domain(matrix(members, [idle, young, known], now)).tolist() == [False, False, True]
    assert in_domain(matrix(members, [idle, young, known], now + 200)).tolist() == [False, False, False]


def test_peers_are_the_others_of_the_failure_domain() -> None:
    members = [Member("a", "eu"), Member("a", "us"), Member("b", "eu"), Member("c", "ap")]
    peers = peer_context(members, np.array([True, False, False, True]))
    assert peers.provider.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert peers.region.tolist() == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("company", [1, 2, 3, 7, 64])
def test_what_is_read_of_an_endpoint_does_not_depend_on_who_else_is_read(company: int) -> None:
    """Back-filling reads other endpoints beside it than serving did, and must give the same bits."""
    windows = [Window() for _ in range(company)]
    for i, window in enumerate(windows):
        now = quiet_then(window, 60, 0.4 + i / 7, 30)
        for hung in range(i % 5):
            window.started(f"hung-{hung}", now)
    members = [Member(f"p{i}", f"r{i}") for i in range(company)]
    x = matrix(members, windows, now + 3.7)
    assert x.dtype == np.float64
    assert x.shape == (company, len(FEATURES))
    assert [row.tolist() for row in x] == [vector(window, now + 3.7) for window in windows]


def test_peers_in_trouble_are_seen() -> None:
    windows = [Window(), Window()]
    now = quiet_then(windows[0], 60, 0.4, 30)
    rows = matrix([Member("a", "eu"), Member("a", "us")], windows, now)
    assert rows[:, NAMES.index("provider_peers")].tolist() == [0.0, 1.0]


def test_members_and_windows_have_to_match() -> None:
    with pytest.raises(ValueError, match="expected as many"):
        matrix([Member("a", "eu")], [], START)


def test_no_endpoints_give_an_empty_matrix() -> None:
    assert matrix([], [], START).shape == (0, len(FEATURES))


def test_the_feature_set_names_its_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert features._feature_set() == FEATURE_SET
    assert len(set(NAMES)) == len(NAMES)
    monkeypatch.setattr(features, "_REVISION", features._REVISION + 1)
    assert features._feature_set() != FEATURE_SET


@pytest.mark.parametrize(
    ("count", "expected", "deviance"),
    [
        (10, 10, 0.0),
        (20, 10, math.sqrt(2 * (20 * math.log(2) - 10))),
        (0, 8, -4.0),
        (5, 10, -math.sqrt(2 * (5 * math.log(0.5) + 5))),
    ],
)
def test_signed_deviance_is_that_of_poisson(count: float, expected: float, deviance: float) -> None:
    assert signed_deviance(np.array([count]), np.array([expected])) == pytest.approx([deviance])


def test_the_page_of_features_is_what_the_registry_says() -> None:
    """F-09: what a forecast looks at is documented from the code that computes it."""
    assert tools_features.PAGE.read_text(encoding="utf-8") == tools_features.page()
    assert all(f"`{name}`" in tools_features.page() for name in NAMES)


def test_nearness_to_degraded_speaks_as_the_label_does() -> None:
    """Three failures where none are usual are degraded (3 standard deviations or more), two are not."""
    for failures, degraded in ((2, False), (3, True)):
        window = Window()
        now = quiet_then(window, 600, 0.1, 1)
        for i in range(failures):
            window.finished(f"bad-{i}", Outcome.SERVER_ERROR, now + i)
        row = dict(zip(NAMES, vector(window, now + 5), strict=True))
        assert (row["failure_excess"] >= 3) is degraded
        assert row["bad_share"] == pytest.approx(failures / (250 + failures + 5))


def test_latency_is_at_no_distance_where_the_label_calls_it_slow() -> None:
    window = Window()
    now = quiet_then(window, 600, 0.25, 31)
    assert dict(zip(NAMES, vector(window, now), strict=True))["slow_distance"] == pytest.approx(0.0, abs=0.02)
    silent = dict(zip(NAMES, vector(window, now + 90), strict=True))
    assert silent["slow_distance"] == -3.0


@pytest.mark.parametrize("gap_s", [4.0, 8.0, 13.0])
@pytest.mark.parametrize(("then", "slow"), [(0.26, True), (0.23, False)])
def test_seven_latencies_are_enough_to_be_slow_however_rare_they_are(gap_s: float, then: float, *, slow: bool) -> None:
    """One attempt in a few seconds brings fewer than seven in half a minute: the last ones tell, up to 90 s back."""
    window = Window()
    times = [START + gap_s * i for i in range(150)]
    for i, now in enumerate(times):
        window.finished(str(i), Outcome.OK, now, ttft_s=then if i >= 140 else 0.1)
    row = dict(zip(NAMES, vector(window, times[-1]), strict=True))
    assert (row["slow_distance"] >= 0) is slow
    assert Reading([window], times[-1]).degraded.tolist() == [slow]


def test_three_failures_of_the_last_few_attempts_degrade_however_rare_they_are() -> None:
    window = Window()
    times = [START + 8.0 * i for i in range(150)]
    for i, now in enumerate(times):
        window.finished(str(i), Outcome.SERVER_ERROR if i in (144, 146, 148) else Outcome.OK, now, ttft_s=0.1)
        row = dict(zip(NAMES, vector(window, now), strict=True))
        assert (row["failure_excess"] >= 3) is (i >= 148)
        assert Reading([window], now).degraded.tolist() == [i >= 148]


def test_an_outage_that_is_over_does_not_come_back_as_attempts_get_rare() -> None:
    """Failures of a minute ago are not of late, however few attempts have ended since: they are not the last seven."""
    window = Window()
    now = quiet_then(window, 600, 0.1, 1)
    for i in range(40):
        window.finished(f"bad-{i}", Outcome.SERVER_ERROR, now + i / 10)
    for i in range(20):
        window.finished(f"good-{i}", Outcome.OK, now + 20 + i / 2, ttft_s=0.1)
    for later in range(36, 85):
        row = dict(zip(NAMES, vector(window, now + later), strict=True))
        assert row["failure_excess"] < 3, later
        assert Reading([window], now + later).degraded.tolist() == [False]
