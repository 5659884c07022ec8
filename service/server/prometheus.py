"""What Prometheus is told, read from the records at every scrape, so that any API process tells the same."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mergenet_core.records.job import JobState
from mergenet_core.store.worker_registry import workers
from service.server.dependencies import Context

MEDIA_TYPE = CONTENT_TYPE_LATEST


class _Records(Collector):
    def __init__(self, context: Context) -> None:
        self.context = context

    def describe(self) -> list[Metric]:
        return []  # else registering would ask Redis

    def collect(self) -> Iterator[Metric]:
        counts = self.context.store.counts()
        jobs = GaugeMetricFamily("mergenet_jobs", "Jobs by state.", labels=["state"])
        for state in get_args(JobState):
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        waiting = len(self.context.store.queued())
        yield GaugeMetricFamily("mergenet_trials_waiting", "Trials that wait for a worker.", value=waiting)
        states = Tally(worker.state for worker in workers(self.context.redis))
        alive = GaugeMetricFamily("mergenet_workers", "Workers that are alive, by state.", labels=["state"])
        for name in ("idle", "busy", "draining"):
            alive.add_metric([name], states[name])
        yield alive


def scrape(context: Context) -> bytes:
    """All numbers in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Records(context))
    return generate_latest(registry)
