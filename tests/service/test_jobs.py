"""Jobs over HTTP, against a real Redis."""

from __future__ import annotations

import json
from typing import Any

from fastapi.testclient import TestClient

from mergenet_core.jobs import queue
from service.settings import ServiceSettings


def test_a_posted_job_is_queued_with_its_folder_and_can_be_looked_at(
    client: TestClient, document: dict[str, Any], settings: ServiceSettings
) -> None:
    answer = client.post("/jobs", json=document)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert job["state"] == "queued"
    assert [trial["id"] for trial in job["trials"]] == ["transfer-0", "control-0", "finalize"]
    assert json.loads(settings.job_folder(job["id"]).spec.read_text())["name"] == "digits"
    again = client.get(answer.headers["location"]).json()
    assert again == job
    assert again["links"]["events"] == f"/jobs/{job['id']}/events"
    sent = queue._queue(settings.redis(decode=False)).get_job_ids()
    assert {str(one) for one in sent} == {f"{job['id']}_{trial}_1" for trial in ("transfer-0", "control-0")}
