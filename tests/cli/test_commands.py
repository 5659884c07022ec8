"""The output and exit status of every command, against a real `mergenet up`."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest
from redis import Redis
from rich.console import Console
from typer.testing import CliRunner

from mergenet_core import __version__
from mergenet_core.errors import ModelRefused, PathRefused
from mergenet_core.records.record import now
from mergenet_core.records.workers import Device, WorkerInfo
from mergenet_core.store import device_leases, worker_registry
from service.cli import render
from service.cli.commands import LINE_WIDTH, app
from service.cli.pack import run_pack
from service.client.profile import Profile, find_profile, read_profile
from service.schemas import JobPage, JobSummary
from tests.cli.conftest import Shell
from tests.service.conftest import job_document


def submitted(up: Shell) -> str:
    answer = up.call("submit", up.write())
    assert answer.exit_code == 0, answer.stderr
    return answer.stdout.strip()


def test_the_command_itself_submits_a_job(up: Shell) -> None:
    answer = up.run("submit", up.write())
    assert (answer.returncode, answer.stderr) == (0, "")
    assert up.call("status", answer.stdout.strip()).exit_code == 0


def test_the_version_is_printed_without_importing_the_commands() -> None:
    program = "import sys; sys.argv = ['mergenet', '--version']; from service.cli.main import main; main(); "
    program += (
        "print([name for name in ('service.cli.commands', 'typer', 'pydantic', 'httpx2') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    assert printed == f"mergenet {version}\n[]\n"
    assert CliRunner().invoke(app, ["--version", "status"]).stdout == f"mergenet {__version__}\n"


@pytest.mark.parametrize("level", [[], ["status"], ["keys"], ["keys", "create"]])
def test_help_is_shown_for_h_and_for_help(level: list[str]) -> None:
    short, long = (CliRunner().invoke(app, [*level, option]) for option in ("-h", "--help"))
    assert (short.exit_code, long.exit_code) == (0, 0)
    assert short.stdout == long.stdout
    assert "Usage: " in short.stdout


@pytest.mark.parametrize(("level", "listed"), [([], "validate"), (["keys"], "revoke"), (["devices"], "clear")])
def test_without_a_command_help_is_shown(level: list[str], listed: str) -> None:
    shown = CliRunner().invoke(app, level)
    assert shown.exit_code == 2
    assert listed in shown.output


def test_help_shows_where_a_default_comes_from() -> None:
    assert "[default: (MERGENET_HOME)]" in CliRunner().invoke(app, ["status", "--help"]).stdout


def test_up_leaves_address_and_key_for_its_owner_only(up: Shell) -> None:
    path = up.folder / "mergenet-home" / "client.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    profile = read_profile(path.parent)
    assert profile is not None
    assert profile.url.startswith("http://127.0.0.1:")
    assert len(profile.api_key) > 30


def test_no_command_line_contains_a_secret(up: Shell) -> None:
    profile = read_profile(up.folder / "mergenet-home")
    assert profile is not None
    lines = up.processes().values()
    assert any("redis-server" in line for line in lines)
    assert any("-m service" in line for line in lines)
    assert not any("requirepass" in line or profile.api_key in line or "redis://" in line for line in lines)


def test_submit_prints_the_id_and_status_shows_the_job(up: Shell) -> None:
    job_id = submitted(up)
    shown = up.call("status", job_id)
    assert shown.exit_code == 0
    assert f"digits ({job_id}) is queued: waits for a free worker" in shown.stdout
    assert "in the queue; no worker is running" in shown.stdout
    assert "| transfer-0 | queued" in shown.stdout
    assert job_id in up.call("status", "--label", "team=vision").stdout
    assert job_id not in up.call("status", "--state", "failed").stdout


def test_arms_and_seeds_from_the_command_line(up: Shell) -> None:
    job_id = up.call("submit", up.write(), "--arms", "transfer,control,sham", "--seeds", "3,4").stdout.strip()
    shown = up.call("status", job_id).stdout
    assert all(f"{arm}-{seed}" in shown for arm in ("transfer", "control", "sham") for seed in (3, 4))
    everything = up.call("status", up.call("submit", up.write(), "--arms", "all").stdout.strip()).stdout
    assert all(f"| {arm}-0" in everything for arm in ("transfer", "control", "sham", "distill", "copy"))
    wrong = up.call("submit", up.write(), "--seeds", "a")
    assert (wrong.exit_code, "--seeds 'a' is not a list of whole numbers" in wrong.stderr) == (2, True)


def test_a_job_is_paused_resumed_cancelled_watched_and_deleted(up: Shell) -> None:
    job_id = submitted(up)
    assert f"{job_id} is paused" in up.call("pause", job_id).stdout
    assert f"{job_id} is queued" in up.call("resume", job_id).stdout
    assert f"{job_id} is cancelled" in up.call("cancel", job_id).stdout
    watched = up.call("watch", job_id)
    assert watched.exit_code == 1  # it did not succeed
    assert "cancelled: cancelled on request" in watched.stdout
    again = up.call("pause", job_id)
    assert (again.exit_code, "the job is cancelled; there is nothing left to pause" in again.stderr) == (2, True)
    assert up.call("delete", job_id).exit_code == 0
    assert up.call("status", job_id).exit_code == 2


def test_the_message_for_a_missing_result_gives_the_job_s_state(up: Shell, tmp_path: Path) -> None:
    job_id = submitted(up)
    for command in (("report", job_id), ("logs", job_id), ("download", job_id, str(tmp_path))):
        answer = up.call(*command)
        assert answer.exit_code == 2
        assert "yet: the job is queued" in answer.stderr
        assert "Traceback" not in answer.stderr


def test_validate_says_what_a_fit_solves(shell: Shell) -> None:
    answer = shell.call("validate", shell.write(transfer={"method": "fit"}))
    assert answer.exit_code == 0, answer.stderr
    text = " ".join(answer.stdout.split())
    assert "Method fit solves 2,320 of 2,354 (99%) target parameters from the source's activations" in text
    assert "head.weight, head.bias: a head is solved only where the source has one for the same labels" in text
    assert "pairs of weights" not in text


def test_validate_shows_pairs_and_estimate(up: Shell, shell: Shell, tmp_path: Path) -> None:
    for one in (up, shell):  # with a service, and without one
        picture = tmp_path / "pairs.svg"
        answer = one.call("validate", one.write(), "--picture", str(picture))
        assert answer.exit_code == 0, answer.stderr
        assert "the method anchored can write 2,320 of 2,354 (99%) target parameters" in answer.stdout
        assert (
            "| 0     | layers.0.weight | layers.0.weight | units.0 mapped, 32 → 16 | pixels shared, 144"
            in answer.stdout
        )
        assert "| 2,304 (100%) " in answer.stdout
        assert "layers.0.weight to layers.0.weight; units.0: carried" in picture.read_text()
        picture.unlink()
        assert "Axes with the same meaning in both models: pixels (144)" in answer.stdout
        assert "Axes mapped from source to target: units.0 (32 → 16)" in answer.stdout
        assert "memory of a process: 0.4 GB" in answer.stdout


def test_keys_are_made_used_and_revoked(up: Shell) -> None:
    key = up.call("keys", "create", "ci", "--scopes", "read").stdout.strip()
    assert key.startswith("mn_")
    assert "ci\tread" in up.call("keys", "list").stdout
    assert up.call("keys", "revoke", "ci").exit_code == 0
    assert "ci" not in up.call("keys", "list").stdout
    unknown = up.call("keys", "revoke", "ci")
    assert (unknown.exit_code, "there is no API key named ci" in unknown.stderr) == (2, True)


def test_workers_and_devices_are_listed_and_a_device_is_cleared(up: Shell) -> None:
    pid = next(pid for pid, line in up.processes().items() if "-m service --fd" in line)
    url = psutil.Process(pid).environ()["MERGENET_REDIS_URL"]
    with Redis.from_url(url, decode_responses=True) as redis:
        slots = tuple(Device(id=str(number), name="cpu: x", memory_bytes=8 << 30) for number in range(2))
        worker = WorkerInfo(
            name="w", host="h", ledger="h", state="idle", device="cpu: x", devices=slots, memory_bytes=8 << 30, cpus=2,
            seen_at=now(),
        )  # fmt: skip
        worker_registry.report_alive(redis, worker)
        lease = device_leases.acquire(redis, "h", ["0", "1"], "j/t/1/w", 1, lease_seconds=30)
        assert isinstance(lease, device_leases.Lease)
        assert device_leases.quarantine(redis, lease, "process 7 of j/t/1/w could not be ended")
        shown = up.call("workers").stdout
        assert "| w      | h    | idle  |" in shown
        assert "quarantined | process 7 of j/t/1/w could not be ended" in shown
        cleared = up.call("devices", "clear", "h", "0")
        assert (cleared.exit_code, "quarantined" in cleared.stdout) == (0, False)
        again = up.call("devices", "clear", "h", "0")
        assert (again.exit_code, "device 0 of h is not quarantined" in again.stderr) == (2, True)
        worker_registry.remove_worker(redis, "w")


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"trian": {}}, ["trian is not a known key; did you mean train?"]),
        ({"train": {"steps": 0, "batch": 4}}, ["has 2 faults", "/train/steps: ", "/train/batch: train.batch is not"]),
        ({"source": {"model": {"path": "../data"}}}, ["'../data' lies outside the model roots"]),
        ({"source": {"model": {"path": "nothing"}}}, ["'nothing' does not exist below the model roots"]),
    ],
)
def test_a_bad_document_gets_sentences_and_exit_status_2(
    up: Shell, shell: Shell, changes: dict[str, object], sentences: list[str]
) -> None:
    for one in (up, shell):
        for command in ("validate", "submit"):
            if one is shell and command == "submit":
                continue
            answer = one.call(command, one.write(**changes))
            assert (answer.exit_code, answer.stdout) == (2, "")
            assert all(sentence in answer.stderr for sentence in sentences), answer.stderr
            assert "Traceback" not in answer.stderr


def test_a_document_that_cannot_be_read(shell: Shell) -> None:
    missing = shell.call("validate", "nothing.yaml")
    assert (missing.exit_code, "nothing.yaml cannot be read" in missing.stderr) == (2, True)
    (shell.folder / "broken.yaml").write_text("a: [")
    assert "neither YAML nor JSON" in shell.call("validate", "broken.yaml").stderr


def test_a_home_that_is_a_file_gets_a_sentence(shell: Shell) -> None:
    (shell.folder / "file").touch()
    for arguments in (["up", "--home", "file", "--port", "0"], ["run", shell.write(), "--home", "file"]):
        refused = shell.run(*arguments)
        assert refused.returncode != 0
        assert "cannot be used (Not a directory)" in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("url", "key", "exit_code", "sentence"),
    [
        ("http://[::1", "k", 1, "http://[::1 is not an address"),
        ("http://127.0.0.1:1", "clé", 2, "the API key holds a line break or a character outside ASCII"),
        ("http://127.0.0.1:1", "a\nb", 2, "the API key holds a line break or a character outside ASCII"),
    ],
)
def test_an_invalid_address_or_key_gets_a_sentence(
    monkeypatch: pytest.MonkeyPatch, url: str, key: str, exit_code: int, sentence: str
) -> None:
    monkeypatch.setenv("MERGENET_URL", url)
    monkeypatch.setenv("MERGENET_API_KEY", key)
    refused = CliRunner().invoke(app, ["status"])
    assert refused.exit_code == exit_code
    assert sentence in refused.stderr


def test_without_a_service_it_says_where_to_find_one(shell: Shell) -> None:
    answer = shell.call("status")
    assert answer.exit_code == 1
    assert "no service found: set MERGENET_URL and MERGENET_API_KEY" in answer.stderr


def test_a_second_up_in_the_same_folder_or_on_the_same_port_is_refused(up: Shell, shell: Shell) -> None:
    second = up.run("up", "--port", "0")
    assert (second.returncode, "is in use by another `mergenet up`" in second.stderr) == (2, True)
    profile = read_profile(up.folder / "mergenet-home")
    assert profile is not None
    port = profile.url.rpartition(":")[2]
    taken = shell.run("up", "--port", port)
    assert (taken.returncode, f"127.0.0.1:{port} cannot be listened on" in taken.stderr) == (2, True)


def test_the_environment_wins_over_the_home_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "client.json").write_text(json.dumps({"url": "http://home", "api_key": "of-home"}))
    monkeypatch.setenv("MERGENET_URL", "http://elsewhere")
    monkeypatch.setenv("MERGENET_API_KEY", "of-elsewhere")
    assert find_profile(None) == Profile(url="http://elsewhere", api_key="of-elsewhere")
    assert find_profile(tmp_path) == Profile(url="http://home", api_key="of-home")
    monkeypatch.delenv("MERGENET_URL")
    monkeypatch.setenv("MERGENET_HOME", os.fspath(tmp_path))
    assert find_profile(None) == Profile(url="http://home", api_key="of-elsewhere")


def test_a_pack_is_written_from_the_command_line_and_stands_for_its_source(shell: Shell) -> None:
    made = shell.run("pack", "models/mlp", "--rank", "4", "--out", "models/small.pack", "--dtype", "float16")
    assert made.returncode == 0, made.stderr
    assert "rank 4 as float16, 1 checkpoint(s)" in made.stdout
    assert "% of the source's" in made.stdout
    document = job_document()
    document["source"] = {"model": {"pack": "small.pack"}}
    document["arms"] = ["transfer", "control"]
    shown = shell.call("validate", shell.write(**document))
    assert shown.exit_code == 0, shown.output


def test_a_source_that_cannot_be_packed_gets_a_sentence(shell: Shell) -> None:
    refused = shell.run("pack", "models/nothing", "--rank", "4", "--out", "p")
    assert refused.returncode == 2
    assert refused.stderr.startswith("mergenet: nothing has no config.json")


def test_sources_are_checked_before_the_process_that_imports_torch_starts(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"nothing has no config\.json"):
        run_pack([tmp_path / "nothing"], 4, tmp_path / "p", "float32")
    with pytest.raises(PathRefused, match="there is no folder"):
        run_pack([tmp_path / "nothing"], 4, tmp_path / "none" / "p", "float32")


@pytest.mark.parametrize(("width", "terminal"), [(80, True), (100, True), (LINE_WIDTH, False)])
def test_a_list_of_jobs_shows_whole_ids_beside_a_long_reason(width: int, terminal: bool) -> None:
    job_id, reason = "01M8HB3Y4W88DT0123456789AB", "transfer-0: " + "a sentence that goes on " * 40
    one = JobSummary(
        id=job_id, name="a-name-" * 9, labels={}, owner="me", state="failed", code="internal", reason=reason,
        trials_done=1, trials=3, created_at=now(), updated_at=now(), finished_at=now(), links={},
    )  # fmt: skip
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    render.jobs(console, JobPage(items=[one], next=None))
    assert job_id in out.getvalue()
    assert "failed" in out.getvalue()
