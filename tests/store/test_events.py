"""What a job says while it runs: events in order, metrics thinned and once a step, bounded streams."""

from __future__ import annotations

import pytest
from redis import Redis

from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.events import Metric, Progress
from mergenet_core.records.record import now
from mergenet_core.store import events


def metric(step: int, value: float, *, trial: str = "control-0", name: str = "loss", attempt: int = 1) -> Metric:
    return Metric(step=step, ts=now(), name=name, value=value, split="train", trial=trial, attempt=attempt)


def test_events_come_in_order_and_in_pages(redis: Redis) -> None:
    attempt = AttemptRef("j", "control-0", 1)
    for index in range(5):
        events.add_event(redis, "j", "note", f"number {index}", attempt=attempt, data={"index": index})
    first = events.events(redis, "j", limit=2)
    rest = events.events(redis, "j", after=first[-1].id)
    assert [event.data["index"] for event in [*first, *rest]] == [0, 1, 2, 3, 4]
    assert (rest[0].trial, rest[0].attempt, rest[0].job) == ("control-0", 1, "j")


def test_metrics_are_thinned_to_the_resolution_and_keep_their_last_point(redis: Redis) -> None:
    events.add_metrics(redis, "j", [metric(step, step / 10) for step in range(1, 1001)])
    found = events.metrics(redis, "j", resolution=100)
    assert 100 <= len(found) <= 101
    assert (found[0].step, found[-1].step) == (1, 1000)


def test_a_step_that_was_measured_twice_shows_the_newer_attempt(redis: Redis) -> None:
    events.add_metrics(redis, "j", [metric(1, 0.9), metric(2, 0.8), metric(3, 0.7)])
    events.add_metrics(redis, "j", [metric(2, 0.5, attempt=2)])
    assert [(found.step, found.value) for found in events.metrics(redis, "j")] == [(1, 0.9), (2, 0.5), (3, 0.7)]


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [({"name": "loss"}, [1, 2, 3]), ({"trial": "transfer-0"}, [5]), ({"step_from": 2, "step_to": 3}, [2, 3])],
)
def test_metrics_are_filtered(redis: Redis, wanted: dict[str, object], steps: list[int]) -> None:
    events.add_metrics(redis, "j", [metric(step, 1.0) for step in (1, 2, 3)])
    events.add_metrics(redis, "j", [metric(5, 1.0, trial="transfer-0", name="accuracy")])
    assert [found.step for found in events.metrics(redis, "j", **wanted)] == steps  # type: ignore[arg-type]


def test_the_event_stream_is_bounded(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVENTS_KEPT", 200)
    for index in range(1000):
        events.add_event(redis, "j", "note", str(index))
    found = events.events(redis, "j", limit=2000)
    assert 200 <= len(found) < 500  # Redis trims whole nodes
    assert found[-1].message == "999"


def test_progress_is_the_newest_alone(redis: Redis) -> None:
    for step in (1, 2):
        events.set_progress(redis, "j", Progress(trial="t", attempt=1, step=step, steps=9, loss=0.1, at=now()))
    assert events.progress(redis, "j")["t"].step == 2
