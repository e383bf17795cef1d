"""Rows of many followers of one resource, which are raw ones, so that what is measured is the server."""

from __future__ import annotations

import asyncio

from cases import FAN_OUT, Run, Sample, transport_case
from fanout import FanOutResult, fan_out

_RATES = {1: 500.0, 100: 50.0, 1000: 5.0}
"""Lines per second, by number of followers."""
_SECONDS = 4.0


def _sample(run: Run, transport: str, followers: int, lines: int, rate: float) -> tuple[FanOutResult, Sample]:
    server = run.server()
    meter = run.meter()
    with meter:
        # On the loop of the standard library: uvloop's forks as gRPC, which is in this process, cannot bear.
        result = asyncio.run(fan_out(server.urls[transport], followers, lines, rate, server=server.pid))
    deliveries = followers * lines
    sample = meter.sample(0, count=deliveries)
    # Without what connecting costs, which is in the meter; the followers are no clients of anybody.
    sample.server_cpu, sample.client_cpu, sample.client_peak = result.server_us_per_line * deliveries / 1e6, 0.0, 0
    return result, sample


def _latency(run: Run, transport: str, followers: int) -> Sample:
    rate = _RATES[followers]
    result, sample = _sample(run, transport, followers, max(20, round(rate * _SECONDS)), rate)
    sample.value = result.p50_ms
    sample.more |= {"p99_ms": result.p99_ms, "last_p50_ms": result.last_p50_ms, "last_p99_ms": result.last_p99_ms}
    return sample


for _followers, _rate in _RATES.items():

    def _measure(run: Run, transport: str, followers: int = _followers) -> Sample:
        return _latency(run, transport, followers)

    transport_case(
        f"fan_out_{_followers}",
        f"{_followers:,} follower{'s' * (_followers > 1)}, {_rate:g} lines/s: write to delivery",
        group=FAN_OUT,
        unit="ms",
        lower_is_better=True,
        slow=True,
    )(_measure)


@transport_case(
    "fan_out_coalescing",
    "lines to 100 followers, as fast as they are written",
    group=FAN_OUT,
    unit="thousand/s",
    slow=True,
)
def coalescing(run: Run, transport: str) -> Sample:
    result, sample = _sample(run, transport, 100, run.scale.lines, 0.0)
    sample.value = result.lines_per_second / 1e3
    return sample
