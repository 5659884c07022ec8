"""Jobs over HTTP, against a real Redis."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from rq import Queue

from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.events import Progress
from mergenet_core.records.record import now
from mergenet_core.records.workers import Device, WorkerInfo
from mergenet_core.spec.parse import digest
from mergenet_core.store import device_leases, keys
from mergenet_core.store.events import set_progress
from mergenet_core.store.jobs import Store
from mergenet_core.store.reconciler import reconcile
from mergenet_core.store.rq_queue import QUEUE
from mergenet_core.store.worker_registry import remove_worker, report_alive
from service.server import submission
from service.server.dependencies import Context
from service.server.routes import jobs
from service.server.settings import ServiceSettings
from tests.service import finishing

Post = Callable[..., str]


def queue(settings: ServiceSettings) -> Queue:
    return Queue(QUEUE, connection=settings.redis(decode=False))


def sent(settings: ServiceSettings) -> set[str]:
    return set(queue(settings).get_job_ids())


def test_a_posted_job_is_queued_with_its_folder_and_can_be_read(
    client: TestClient, document: dict[str, Any], settings: ServiceSettings
) -> None:
    answer = client.post("/jobs", json=document)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert job["state"] == "queued"
    assert [trial["id"] for trial in job["trials"]] == ["transfer-0", "control-0", "finalize"]
    assert job["owner"] == "operator"
    assert json.loads(settings.job_folder(job["id"]).spec.read_text())["name"] == "digits"
    assert client.get(answer.headers["location"]).json() == job
    not_yet = {"logs", "report", "artifacts"}
    assert {name for name, link in job["links"].items() if client.get(link).status_code == 404} == not_yet
    assert sent(settings) == {f"{job['id']}_{trial}_1" for trial in ("transfer-0", "control-0")}


def test_a_yaml_document_is_the_same_job(client: TestClient, document: dict[str, Any], store: Store) -> None:
    text = yaml.safe_dump(document)
    ids = [
        client.post("/jobs", content=text, headers={"Content-Type": kind}).json()["id"]
        for kind in ("application/yaml", "text/yaml; charset=utf-8")
    ]
    ids.append(client.post("/jobs", json=document).json()["id"])
    assert len({digest(store.spec(job_id)) for job_id in ids}) == 1


def test_validate_returns_pairs_and_estimate_and_queues_nothing(
    client: TestClient, document: dict[str, Any], settings: ServiceSettings
) -> None:
    answer = client.post("/jobs/validate", json=document)
    assert answer.status_code == 200, answer.text
    plan = answer.json()["plan"]
    assert plan["pairing"]["transferable_parameters"] == 144 * 16 + 16
    single = plan["estimate"]["strategies"][0]
    assert plan["estimate"]["memory_bytes"] == single["device_bytes"] + single["host_bytes"]
    assert client.get("/jobs").json()["items"] == []
    assert not (settings.home / "jobs").exists()


def test_the_same_key_and_document_give_the_same_job(
    client: TestClient, document: dict[str, Any], settings: ServiceSettings
) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/jobs", json=document, headers=headers)
    again = client.post("/jobs", content=yaml.safe_dump(document), headers=headers)
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert len(list((settings.home / "jobs").iterdir())) == 1
    other = client.post("/jobs", json=document | {"name": "other"}, headers=headers)
    assert other.status_code == 422
    assert other.json()["type"] == "urn:mergenet:problem:idempotency-conflict"
    assert len(list((settings.home / "jobs").iterdir())) == 1


def test_a_repeated_submission_is_answered_although_its_model_is_gone(
    client: TestClient, document: dict[str, Any], settings: ServiceSettings
) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/jobs", json=document, headers=headers).json()
    shutil.rmtree(settings.model_roots[0] / "mlp")
    again = client.post("/jobs", json=document, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, first["id"]), again.text
    assert client.post("/jobs", json=document).status_code == 422


@pytest.mark.parametrize("when", ["between folder and record", "between record and folder of a deletion"])
def test_a_folder_that_a_killed_process_left_without_a_record_is_removed(
    client: TestClient, post: Post, store: Store, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    kept = post()
    monkeypatch.setattr("service.server.submission.shutil.rmtree", lambda *_, **__: None)  # the dead remove nothing
    if when == "between folder and record":
        monkeypatch.setattr(Store, "create", die)
        with pytest.raises(Killed):
            submission.accept(context_of(client), store.spec(kept), "someone", None)
    else:
        job_id = post()
        client.post(f"/jobs/{job_id}/cancel")
        monkeypatch.setattr(Store, "settled", die)
        with pytest.raises(Killed):
            jobs.delete_job(context_of(client), job_id)
    monkeypatch.undo()
    folders = {folder.name for folder in (settings.home / "jobs").iterdir()}
    (left,) = folders - {kept}
    if when == "between folder and record":
        submission.settle(context_of(client))
        assert (settings.home / "jobs" / left).exists(), "its request may still be under way"
        store.redis.zincrby(keys.UNSETTLED, -3601, left)
    submission.settle(context_of(client))
    assert [folder.name for folder in (settings.home / "jobs").iterdir()] == [kept]
    assert store.redis.zcard(keys.UNSETTLED) == 0


def test_what_a_killed_worker_left_of_a_succeeded_job_is_cleared(
    client: TestClient, post: Post, store: Store, settings: ServiceSettings
) -> None:
    job_id = post()
    folder = settings.job_folder(job_id)
    finishing.start(store, job_id, "transfer-0")
    finishing.checkpoint(store, job_id, "transfer-0", folder)
    finishing.commit(store, job_id, "transfer-0")
    finishing.start(store, job_id, "control-0")
    finishing.commit(store, job_id, "control-0")
    finishing.start(store, job_id, "finalize")
    finishing.commit(store, job_id, "finalize", artifact="artifact")
    submission.settle(context_of(client))
    assert (folder.trial("transfer-0") / "checkpoints").exists(), "its worker has a minute for it"
    store.redis.zincrby(keys.UNSETTLED, -61, job_id)
    submission.settle(context_of(client))
    assert not (folder.trial("transfer-0") / "checkpoints").exists()
    assert folder.spec.exists()
    assert store.redis.zcard(keys.UNSETTLED) == 0


def test_a_job_that_needs_cuda_waits_for_a_worker_with_gpus(client: TestClient, post: Post, store: Store) -> None:
    slot = Device(id="0", name="cpu", memory_bytes=16 << 30)
    worker = WorkerInfo(
        name="w", host="h", state="idle", device="cpu: x", devices=(slot,), memory_bytes=16 << 30, cpus=2, seen_at=now()
    )
    report_alive(store.redis, worker)
    job = post(resources={"device": "cuda"})
    waits = "position 1 in the queue; needs 1 GPU on one host; no running worker has so many"
    assert client.get(f"/jobs/{job}").json()["waiting_reason"] == waits
    report_alive(store.redis, worker.model_copy(update={"name": "g", "device": "cuda: x"}))
    assert client.get(f"/jobs/{job}").json()["waiting_reason"] == "position 1 in the queue; 1 worker, 0 busy"
    assert client.get(f"/jobs/{post()}").json()["waiting_reason"].endswith("2 workers, 0 busy")


def context_of(client: TestClient) -> Context:
    return client.app.state.context  # type: ignore[attr-defined, no-any-return]


def test_jobs_are_listed_newest_first_in_pages_by_state_and_label(client: TestClient, post: Post, store: Store) -> None:
    ids = [post(labels={"n": str(n % 2)}) for n in range(5)]
    finishing.start(store, ids[0], "transfer-0")
    finishing.fail(store, ids[0], "transfer-0")
    first = client.get("/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in first["items"]] == [ids[4], ids[3]]
    second = client.get("/jobs", params={"limit": 3, "after": first["next"]}).json()
    assert [job["id"] for job in second["items"]] == [ids[2], ids[1], ids[0]]
    assert second["next"] is None
    assert [job["id"] for job in client.get("/jobs", params={"label": "n=1"}).json()["items"]] == [ids[3], ids[1]]
    failed = client.get("/jobs", params={"status": "failed", "label": "n=0"}).json()["items"]
    assert [(job["id"], job["trials_done"], job["trials"]) for job in failed] == [(ids[0], 0, 3)]


def test_a_job_says_why_it_waits(client: TestClient, post: Post, store: Store) -> None:
    first, second = post(), post()
    assert [client.get(f"/jobs/{job}").json()["queue_position"] for job in (first, second)] == [1, 3]  # two trials each
    assert (
        client.get(f"/jobs/{first}")
        .json()["waiting_reason"]
        .startswith("position 1 in the queue; no worker is running")
    )
    slot = Device(id="0", name="cpu", memory_bytes=16 << 30)
    busy = WorkerInfo(
        name="w",
        host="h",
        ledger="h",
        state="busy",
        device="cpu",
        devices=(slot,),
        memory_bytes=16 << 30,
        cpus=2,
        seen_at=now(),
        job=first,
    )
    report_alive(store.redis, busy)
    finishing.start(store, first, "transfer-0")
    assert client.get(f"/jobs/{second}").json()["waiting_reason"] == "position 2 in the queue; 1 worker, 1 busy"
    assert client.get(f"/jobs/{first}").json()["waiting_reason"] is None
    assert client.get("/workers").json()[0]["job"] == first


def test_more_devices_than_any_host_has_are_refused_and_a_job_waits_for_a_host_that_left(
    client: TestClient, post: Post, store: Store, document: dict[str, Any]
) -> None:
    slots = tuple(Device(id=str(number), name="cpu", memory_bytes=16 << 30) for number in range(2))
    large = WorkerInfo(
        name="w", host="big", ledger="big", state="idle", device="cpu", devices=slots, memory_bytes=16 << 30, cpus=2,
        seen_at=now(),
    )  # fmt: skip
    small = large.model_copy(update={"name": "v", "host": "small", "devices": slots[:1]})
    for worker in (large, small):
        report_alive(store.redis, worker)
    job = post(resources={"devices": 2})
    assert client.get(f"/jobs/{job}").json()["waiting_reason"] == "position 1 in the queue; 1 worker, 0 busy"
    answer = client.post("/jobs/validate", json=document | {"resources": {"devices": 4}})
    assert answer.status_code == 422
    assert "resources.devices is 4; the largest host, big, has 2" in answer.json()["detail"]
    assert answer.json()["errors"][0]["pointer"] == "/resources/devices"
    remove_worker(store.redis, "w")
    waiting = client.get(f"/jobs/{job}").json()["waiting_reason"]
    assert waiting.startswith("position 1 in the queue; needs 2 devices on one host; no running worker is on a host")


def test_devices_are_listed_and_a_quarantined_one_is_cleared(client: TestClient, store: Store) -> None:
    slots = tuple(Device(id=one, name="cuda: x", memory_bytes=1) for one in ("GPU-1", "GPU-2"))
    worker = WorkerInfo(
        name="w", host="h", ledger="boot", state="idle", device="cuda: x", devices=slots, memory_bytes=1, cpus=2,
        seen_at=now(),
    )  # fmt: skip
    report_alive(store.redis, worker)
    lease = device_leases.acquire(store.redis, "boot", ["GPU-1", "GPU-2"], "job/trial/1/w", 1, lease_seconds=30)
    assert isinstance(lease, device_leases.Lease)
    listed = client.get("/devices").json()
    assert [(one["host"], one["id"], one["state"], one["holder"]) for one in listed] == [
        ("h", "GPU-1", "held", "job/trial/1/w"),
        ("h", "GPU-2", "free", None),
    ]
    assert client.post("/devices/h/GPU-1/clear").status_code == 404  # it is held, not quarantined
    assert device_leases.quarantine(store.redis, lease, "process 7 could not be ended")
    assert client.get("/devices").json()[0]["reason"] == "process 7 could not be ended"
    assert {one["state"] for one in client.post("/devices/h/GPU-1/clear").json()} == {"free"}
    assert client.post("/devices/h/GPU-1/clear").status_code == 404


def test_a_job_on_several_hosts_waits_for_a_fleet_worker_and_then_for_hosts(
    client: TestClient, post: Post, store: Store
) -> None:
    job = post(resources={"nodes": 2})
    assert any("needs a fleet worker" in note for note in client.get(f"/jobs/{job}/plan").json()["notes"])
    plain = WorkerInfo(name="w", host="h", state="idle", device="cpu", memory_bytes=16 << 30, cpus=2, seen_at=now())
    report_alive(store.redis, plain)
    waiting = client.get(f"/jobs/{job}").json()["waiting_reason"]
    assert waiting.startswith("position 1 in the queue; needs a fleet worker, none is running")
    report_alive(store.redis, plain.model_copy(update={"name": "f", "fleet": True, "state": "busy"}))
    assert client.get(f"/jobs/{job}").json()["waiting_reason"] == "position 1 in the queue; 1 fleet worker, 1 busy"
    store.update(job, lambda record: state_machine.claim(record, AttemptRef(record.id, "control-0", 1), "f"))
    why = "needs 2 hosts with 4 GPUs each, 1 is free; position 1 in the queue"
    store.update(job, lambda record: state_machine.waits(record, record.attempt(record.trial("control-0")), why))
    assert client.get(f"/jobs/{job}").json()["waiting_reason"] == why
    store.update(job, lambda record: state_machine.started(record, record.attempt(record.trial("control-0"))))
    assert client.get(f"/jobs/{job}").json()["waiting_reason"] is None


def test_a_job_shows_the_progress_of_its_trials(client: TestClient, post: Post, store: Store) -> None:
    job_id = post()
    finishing.start(store, job_id, "transfer-0")
    at = Progress(trial="transfer-0", attempt=1, step=2, steps=4, loss=0.5, eta_seconds=3.0, at=now())
    set_progress(store.redis, job_id, at)
    job = client.get(f"/jobs/{job_id}").json()
    assert (job["state"], job["progress"]["transfer-0"]["step"]) == ("running", 2)


def test_pause_resume_and_cancel(client: TestClient, post: Post, settings: ServiceSettings) -> None:
    job_id = post()
    assert client.post(f"/jobs/{job_id}/pause").json()["state"] == "paused"
    queue(settings).empty()
    assert client.post(f"/jobs/{job_id}/resume").json()["state"] == "queued"
    assert sent(settings) == {f"{job_id}_{trial}_1" for trial in ("transfer-0", "control-0")}
    cancelled = client.post(f"/jobs/{job_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    for what in ("pause", "resume", "checkpoint"):
        answer = client.post(f"/jobs/{job_id}/{what}")
        assert answer.status_code == 409, what
        assert answer.json()["type"] == "urn:mergenet:problem:state-conflict"
        assert "cancelled" in answer.json()["detail"]


def test_a_running_trial_is_asked_for_a_checkpoint(client: TestClient, post: Post, store: Store) -> None:
    job_id = post()
    nothing = client.post(f"/jobs/{job_id}/checkpoint")
    assert (nothing.status_code, "nothing is training" in nothing.json()["detail"]) == (409, True)
    finishing.start(store, job_id, "transfer-0")
    assert client.post(f"/jobs/{job_id}/checkpoint").json()["request"] == "checkpoint"


def test_checkpoints_are_listed_while_they_are_kept(
    client: TestClient, post: Post, store: Store, settings: ServiceSettings
) -> None:
    job_id = post()
    assert client.get(f"/jobs/{job_id}/checkpoints").json() == {"items": []}
    finishing.start(store, job_id, "transfer-0")
    finishing.checkpoint(store, job_id, "transfer-0", settings.job_folder(job_id))
    (found,) = client.get(f"/jobs/{job_id}/checkpoints").json()["items"]
    assert (found["trial"], found["step"]) == ("transfer-0", 2)
    (settings.job_folder(job_id).path / found["path"]).rmdir()
    assert client.get(f"/jobs/{job_id}/checkpoints").json() == {"items": []}


def test_only_a_finished_job_is_deleted_and_nothing_of_it_remains(
    client: TestClient, post: Post, store: Store, settings: ServiceSettings
) -> None:
    job_id = post()
    assert client.delete(f"/jobs/{job_id}").status_code == 409
    finishing.finish(store, job_id, settings.job_folder(job_id))
    assert client.delete(f"/jobs/{job_id}").status_code == 204
    assert client.get(f"/jobs/{job_id}").status_code == 404
    assert client.delete(f"/jobs/{job_id}").status_code == 404
    assert not settings.job_folder(job_id).path.exists()
    left = [key for key in store.redis.keys("mergenet:*") if job_id in str(key)]
    assert not [key for key in left if store.redis.ttl(key) < 0]  # the queue's short-lived marks end by themselves


def test_plan_and_report(client: TestClient, post: Post, store: Store, settings: ServiceSettings) -> None:
    job_id = post()
    assert client.get(f"/jobs/{job_id}/plan").json()["pairing"]["pairs"]
    missing = client.get(f"/jobs/{job_id}/report")
    assert missing.status_code == 404
    assert "there is no report yet: the job is queued" in missing.json()["detail"]
    finishing.finish(store, job_id, settings.job_folder(job_id))
    assert client.get(f"/jobs/{job_id}/report").json()["chosen"] == "transfer-0"
    path = settings.job_folder(job_id).artifact / "report.json"
    path.write_text(path.read_text().replace("transfer-0", "transfer-1"))
    assert client.get(f"/jobs/{job_id}/report").json()["type"] == "urn:mergenet:problem:checkpoint-invalid"


@pytest.mark.usefixtures("client")  # its reconciler runs
def test_a_lost_message_is_sent_again(post: Post, settings: ServiceSettings, store: Store) -> None:
    job_id = post()
    queue(settings).empty()
    while not sent(settings):
        reconcile(store, settings.redis(decode=False), every_seconds=0.05)
    assert sent(settings) == {f"{job_id}_{trial}_1" for trial in ("transfer-0", "control-0")}
