"""What the server counts, in the text format that Prometheus reads from /metrics.

Requests are counted by observe.py, tokens and times by measure.py; queue, rows and pages are asked of the engines when somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pollux.serve.server import AnyEngine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)


class Metrics:
    """The instruments of one server. No label holds anything that a client can invent, so their number stays small."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry, "namespace": "pollux"}
        self.requests = Counter("requests", "Requests by route, method and status code.", ("route", "method", "code"), **made)
        self.request_seconds = Histogram(
            "request_seconds", "From the arrival of a request to the end of its answer.", ("route",), buckets=_SECONDS, **made
        )
        self.first_token_seconds = Histogram(
            "time_to_first_token_seconds", "From a job's arrival at the engine to its first piece.", ("model",), buckets=_SECONDS, **made
        )
        self.token_seconds = Histogram(
            "time_between_tokens_seconds", "A job's mean time from token to token.", ("model",), buckets=_TOKEN_SECONDS, **made
        )
        self.tokens = Counter(
            "tokens", "Tokens read (in) and written (out); their rate is tokens per second.", ("model", "direction", "modality"), **made
        )
        self.jobs = Counter("jobs", "Jobs of the engine by how they ended.", ("model", "end"), **made)

    def watch(self, engines: Mapping[str, AnyEngine]) -> None:
        """Report the `stats()` of engines, by the name of their model."""
        self.registry.register(_Engines(engines))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Engines(Collector):
    def __init__(self, engines: Mapping[str, AnyEngine]):
        self._engines = engines

    def describe(self) -> Iterable[Metric]:
        return ()  # so that registering asks no engine

    def collect(self) -> Iterable[Metric]:
        stats = {name: engine.stats() for name, engine in self._engines.items()}
        for name, meaning in _STATES.items():
            gauge = GaugeMetricFamily(f"pollux_{name}", meaning, labels=["model"])
            for model, one in stats.items():
                gauge.add_metric([model], getattr(one, name))
            yield gauge
        cached = CounterMetricFamily("pollux_cached_tokens", "Tokens of prompts that came from the prefix cache.", labels=["model"])
        for model, one in stats.items():
            cached.add_metric([model], one.cached_tokens)
        yield cached


_STATES = {
    "waiting": "Requests that wait for the engine.",
    "rows": "Answers that are being written.",
    "pages": "Pages of the KV cache.",
    "pages_used": "Pages that answers use.",
    "pages_kept": "Pages that nobody uses but that hold a prefix.",
}


class MetricsPage:
    """Answers GET /metrics and passes everything else on."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/metrics" and scope["method"] == "GET":
            return await Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)(scope, receive, send)
        await self.app(scope, receive, send)
