"""Metrics for Prometheus: jobs and workers from the records, and the requests that this process has answered."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mergenet_core.records.job import JobState
from mergenet_core.store.jobs import Store
from mergenet_core.store.worker_registry import workers

MEDIA_TYPE = CONTENT_TYPE_LATEST
UNMATCHED = "unmatched"
"""The route of requests that no route of the API serves, so that their paths do not become labels."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LABELS = ("method", "route", "status")


class ServiceMetrics:
    """What `/metrics` shows: gauges that are read from the records at every scrape, and this process's requests."""

    def __init__(self, store: Store) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Records(store))
        self._requests = Counter(
            "mergenet_http_requests",
            "Requests that this API process has answered since it started; sum over the processes.",
            _LABELS,
            registry=self._registry,
        )
        self._seconds = Histogram(
            "mergenet_http_request_duration_seconds",
            "Time until this API process had sent the whole response; an event stream lasts as long as it is read.",
            _LABELS,
            registry=self._registry,
        )

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request by method, route template and status."""
        labels = (method if method in _METHODS else "other", route, str(status))
        self._requests.labels(*labels).inc()
        self._seconds.labels(*labels).observe(seconds)

    def scrape(self) -> bytes:
        """All metrics in Prometheus' text format. Raises: `RedisError`."""
        return generate_latest(self._registry)


class _Records(Collector):
    """Gauges from the records in Redis, the same from every API process."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def describe(self) -> list[Metric]:
        return []  # otherwise registering would ask Redis

    def collect(self) -> Iterator[Metric]:
        counts = self.store.counts()
        jobs = GaugeMetricFamily("mergenet_jobs", "Jobs by state.", labels=["state"])
        for state in get_args(JobState):
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        waiting = len(self.store.queued())
        yield GaugeMetricFamily("mergenet_trials_waiting", "Trials that wait for a worker.", value=waiting)
        states = Tally(worker.state for worker in workers(self.store.redis))
        alive = GaugeMetricFamily("mergenet_workers", "Workers that are alive, by state.", labels=["state"])
        for name in ("idle", "busy", "draining"):
            alive.add_metric([name], states[name])
        yield alive
