"""How much load a version says it has, for Envoy to weigh replicas by."""

from __future__ import annotations

from volary_inference.domain.load import MEMORY_US, RecentLoad

CALL_S, STEP_US = 0.1, 50_000


def values(report: str) -> dict[str, float]:
    kind, _, text = report.partition(" ")
    assert kind == "TEXT"
    return {name: float(value) for name, value in (pair.split("=") for pair in text.split(","))}


def test_report_is_calls_a_second_and_calls_at_a_time() -> None:
    load = RecentLoad()
    for step in range(11):
        assert load.report == ""
        load.add(CALL_S, 1_000_000 + step * STEP_US)
    # 11 calls of 0.1 s within 0.5 s
    assert values(load.report) == {"rps_fractional": 22, "application_utilization": 2.2}


def test_slower_calls_weigh_less_and_are_forgotten() -> None:
    load, now_us = RecentLoad(), 0

    def seconds_a_call(call_s: float, calls: int) -> float:
        nonlocal now_us
        for _ in range(calls):
            now_us += STEP_US
            load.add(call_s, now_us)
        found = values(load.report)
        return found["application_utilization"] / found["rps_fractional"]

    assert abs(seconds_a_call(0.01, 100) - 0.01) < 1e-6
    few = seconds_a_call(0.04, 20)
    many = seconds_a_call(0.04, 4 * MEMORY_US // STEP_US)
    assert 0.01 < few < 0.02 < 0.035 < many <= 0.04
    assert seconds_a_call(0.01, 4 * MEMORY_US // STEP_US) < 0.015


def test_clock_that_goes_back_begins_a_new_period() -> None:
    load = RecentLoad()
    load.add(CALL_S, 10_000_000)
    load.add(CALL_S, 1_000_000)
    assert load.report == ""
    load.add(CALL_S, 2_000_000)
    assert values(load.report) == {"rps_fractional": 2, "application_utilization": 0.2}
