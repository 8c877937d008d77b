"""Metrics: the names that operators know, numbers that agree with the run, and an endpoint that listens on loopback."""

from __future__ import annotations

import functools
import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from test_engine import OUTPUT, embedded, page_bytes, workload

from pikv_runtime import metrics_endpoint
from pikv_runtime.__main__ import main
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.contract import Control
from pikv_runtime.engine import Engine
from pikv_runtime.ledger import Tally
from pikv_runtime.metrics import Histogram, as_json, read
from pikv_runtime.policy import load_policy
from pikv_runtime.policy.guard import Guard, GuardLimits

CONFIG = RuntimeConfig(
    slots=4, blocks=128, codec="bf16", read="sparse", router="centroid", interval_s=0.05, observe_tokens=4,
    cap_bytes=24 * page_bytes(), host_bytes=40 * page_bytes(),
)  # fmt: skip


def served(policy, ranks=1):
    engine = Engine(embedded()[0], CONFIG, policy, ranks)
    done = list(engine.run(workload()))
    return engine, done, as_json(read(engine))


@functools.cache
def lossy():
    return served("static:ratio=3,evict=0.3,fan_out=0.3/h2o", ranks=2)


def total(values, **labels):
    """Sum of a metric's values, of those that carry `labels`."""
    return sum(v["value"] for v in values if labels.items() <= v.items())


def test_numbers_are_those_of_the_run() -> None:
    engine, done, found = lossy()
    tally, s = engine.ledger.tally[0], engine.ledger
    assert found["pikv:num_requests_running"] == found["pikv:num_requests_waiting"] == 0
    assert (
        total(found["pikv:request_finished_total"], finished_reason="length") == len(done) == len(workload().requests)
    )
    assert found["pikv:generation_tokens_total"] == len(done) * OUTPUT
    assert found["pikv:prompt_tokens_total"] == found["pikv:prefix_cache_queries_total"] == tally[Tally.PROMPT_TOKENS]
    assert found["pikv:prefix_cache_hits_total"] == sum(d.hit_tokens for d in done) > 0
    assert found["pikv:kv_cache_usage_perc"] == s.bytes_rank[0].max() / s.cap_bytes[0]
    assert total(found["pikv:evicted_pages_total"], reason="control") == tally[Tally.EVICTED_PAGES] > 0
    assert total(found["pikv:evicted_pages_total"], reason="cached") == tally[Tally.EVICTED_BLOCKS] * s.layers
    assert total(found["pikv:kv_cache_bytes"], tier="host") == s.host_bytes[0].sum()
    for rank, codecs in engine.runner.nbytes().items():
        for codec, stored in codecs.items():
            assert total(found["pikv:kv_cache_bytes"], rank=str(rank), tier="device", codec=codec) == stored
    assert total(found["pikv:link_bytes_total"], purpose="page_move") == engine.transport.sent_bytes["page_move"] > 0
    assert found["pikv:control_decisions_total"] == engine.timers.decisions
    times = found["pikv:time_to_first_token_seconds"]
    assert times["count"] == len(done) and times["sum"] == pytest.approx(sum(d.ttft_s for d in done))
    assert found["pikv:time_per_output_token_seconds"]["sum"] == pytest.approx(sum(d.tpot_s for d in done))
    assert list(times["buckets"].values()) == sorted(times["buckets"].values()) and times["buckets"]["+Inf"] == len(
        done
    )


def test_a_histogram_counts_like_prometheus_buckets() -> None:
    h = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 1.0, 7.0):
        h.add(value)
    assert h.cumulative() == [("0.1", 2), ("1", 4), ("+Inf", 5)] and h.total == pytest.approx(8.65)


class Absurd:
    """Asks for what nobody may have."""

    name = "absurd"

    def decide(self, telemetry, out=None):
        out = out if out is not None else Control.zeros(len(telemetry.groups))
        neutral = Control.neutral(len(telemetry.groups))
        out.groups[:], out.globals[:] = neutral.groups, neutral.globals
        out.groups[0] = np.nan, np.inf, -7
        out.globals[0], out.globals[1] = -np.inf, 1e30
        return out


def test_absurd_controls_are_clipped_and_counted() -> None:
    engine, done, found = served(Absurd())
    assert len(done) == len(workload().requests)
    assert found["pikv:control_clips_total"] == 5 * engine.timers.decisions
    controls = np.frombuffer(b"".join(engine.control_log), np.float32)
    assert np.isfinite(controls).all() and controls.max() <= 16
    assert lossy()[2]["pikv:control_clips_total"] == 0


class Greedy(Absurd):
    """Asks for more than there is, and for nothing that is not a number."""

    def decide(self, telemetry, out=None):
        out = super().decide(telemetry, out)
        out.groups[0] = 0, 1, 0
        return out


def test_what_a_guard_clips_is_counted_too() -> None:
    engine, _, found = served(Guard(Greedy(), load_policy("lazy/h2o"), GuardLimits(timeout_us=np.inf, veto_rate=1)))
    assert found["pikv:guard_trips_total"] == 0
    assert found["pikv:control_clips_total"] == 2 * engine.timers.decisions


def test_guard_trips_are_counted() -> None:
    guard = Guard(Absurd(), load_policy("lazy/h2o"), GuardLimits(timeout_us=np.inf))
    engine, _, found = served(guard)
    assert found["pikv:guard_trips_total"] == 1 and found["pikv:guard_engaged"] == 1
    assert found["pikv:guard_fallback_decisions_total"] == engine.timers.decisions
    assert total(found["pikv:guard_reasons_total"], reason="nan") == engine.timers.decisions
    assert found["pikv:control_clips_total"] == 0


@pytest.fixture
def client():
    return pytest.importorskip("prometheus_client")


def scrape(endpoint) -> str:
    url = f"http://{endpoint.host}:{endpoint.port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        return response.read().decode()


def test_the_endpoint_says_what_the_json_says(client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    endpoint = metrics_endpoint.MetricsEndpoint(0)
    try:
        assert endpoint.host == "127.0.0.1" and endpoint._server.server_address[0] == "127.0.0.1"
        assert scrape(endpoint) == ""
        engine = Engine(embedded()[0], CONFIG, "lazy/h2o")
        seen, last = [], {}

        def publish(engine):
            endpoint.publish(engine)
            seen.append(scrape(endpoint))
            last.update(as_json(read(engine)))

        list(engine.run(workload(), on_interval=publish))
    finally:
        endpoint.close()
    assert len(seen) > 3 and seen[0] != seen[-1]
    samples = {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(seen[-1])
        for s in family.samples
    }
    for name, value in last.items():
        if isinstance(value, list):
            for row in value:
                labels = sorted((k, v) for k, v in row.items() if k != "value")
                assert samples[(name, *labels)] == row["value"], name
        elif isinstance(value, dict):
            assert samples[(f"{name}_count",)] == value["count"] == value["buckets"]["+Inf"]
            assert samples[(f"{name}_sum",)] == pytest.approx(value["sum"])
        else:
            assert samples[(name,)] == pytest.approx(value), name


def test_other_ranks_tell_only_what_is_theirs(client) -> None:
    endpoint = metrics_endpoint.MetricsEndpoint(0, every_rank=False)
    try:
        endpoint.publish(lossy()[0])
        names = {line.partition("{")[0].split()[0] for line in scrape(endpoint).splitlines() if line[0] != "#"}
    finally:
        endpoint.close()
    assert names == {"pikv:kv_cache_bytes", "pikv:link_bytes_total"}


def test_a_taken_port_is_one_error(client) -> None:
    endpoint = metrics_endpoint.MetricsEndpoint(0)
    try:
        with pytest.raises(ValueError, match=f"127.0.0.1:{endpoint.port}: .*in use"):
            metrics_endpoint.MetricsEndpoint(endpoint.port)
    finally:
        endpoint.close()


def test_without_the_library_there_is_one_error(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "1, 2, 3, ", "output_tokens": 2}))
    assert main(["serve", str(prompts), "--metrics-port", "0"]) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "needs prometheus_client: pip install 'pikv-optimizer[metrics]'" in error
    result = tmp_path / "result.json"
    assert main(["serve", str(prompts), "--json", str(result)]) == 0
    assert json.loads(result.read_text())["metrics"]["pikv:generation_tokens_total"] == 2
