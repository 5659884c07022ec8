"""The command line: `mergenet up | run | submit | watch | status | logs | report | download | … | workers | keys`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from mergenet_core.errors import MergeNetError, PathRefused, StorageFull, Unavailable
from mergenet_core.spec.job import JobSpec
from service.cli import render
from service.cli.job_file import Override, read_document
from service.cli.pairing_svg import draw
from service.cli.watch import watch_job
from service.client.client import Client
from service.client.profile import DEFAULT_HOME, Profile, find_profile
from service.schemas import JobView

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make a model better with what another, unlike model knows.",
)
keys_app = typer.Typer(no_args_is_help=True, help="Who may use the service, and for what.")
app.add_typer(keys_app, name="keys")
devices_app = typer.Typer(no_args_is_help=True, help="What the hosts lend to trials; `mergenet workers` lists it.")
app.add_typer(devices_app, name="devices")

FAILED, BAD_INPUT = 1, 2
INTERRUPTED = 130
LINE_WIDTH = 200
"""Off a terminal, where nothing says how wide a line may be."""

Document = Annotated[Path, typer.Argument(help="The job document, YAML or JSON; - reads standard input.")]
JobId = Annotated[str, typer.Argument(help="The job's id.")]
Home = Annotated[
    Path | None,
    typer.Option(help="Folder of a `mergenet up`, to find its address and key. [default: MERGENET_HOME]"),
]
LocalHome = Annotated[Path, typer.Option(envvar="MERGENET_HOME", help="Folder of jobs, results, records and logs.")]
Models = Annotated[Path, typer.Option(help="Folder that job documents name models in.")]
Data = Annotated[Path, typer.Option(help="Folder that job documents name data in.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, max=64, help="Trials to train at a time. [default: MERGENET_WORKERS, or one a GPU, or one]"),
]
Arms = Annotated[str | None, typer.Option(help="Arms instead of the document's: a,b,c, or all.")]
Seeds = Annotated[str | None, typer.Option(help="Seeds instead of the document's: 0,1,2.")]


@app.command()
def up(
    home: LocalHome = DEFAULT_HOME,
    models: Models = Path("models"),
    data: Data = Path("data"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    workers: Workers = None,
) -> None:
    """Start the service on this machine: Redis, the API and workers; Ctrl-C stops all of it."""
    from service.local.local_service import LocalOptions, run_service

    def ready(profile: Profile) -> None:
        console.print(f"[bold]{profile.url}[/bold] is up; API documentation at {profile.url}/docs")
        console.print(f"address and key are in {home}/client.json; logs are in {home}/logs; Ctrl-C stops it")

    with _sentences():
        run_service(LocalOptions(home, models, data, host, port, workers), ready)


@app.command()
def run(
    document: Document,
    home: LocalHome = DEFAULT_HOME,
    out: Annotated[Path | None, typer.Option(help="Folder for the result; it stays in the home otherwise.")] = None,
    models: Models = Path("models"),
    data: Data = Path("data"),
    workers: Workers = None,
    arms: Arms = None,
    seeds: Seeds = None,
) -> None:
    """Run one job on this machine from nothing: start, submit, watch, download, stop.

    When it was interrupted, the same command goes on from the last checkpoint.
    """
    from service.cli.run import run_job
    from service.local.local_service import LocalOptions

    with _sentences():
        spec = read_document(document, Override.read(arms, seeds))
        succeeded = run_job(spec, LocalOptions(home, models, data, port=0, workers=workers or None), out, console)
    raise typer.Exit(0 if succeeded else FAILED)


@app.command()
def submit(
    document: Document,
    home: Home = None,
    arms: Arms = None,
    seeds: Seeds = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key gives the same job.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it until it has ended.")] = False,
) -> None:
    """Queue a job and print its id."""
    with _client(home) as client:
        job = client.submit(_read(document, arms, seeds), idempotency_key=idempotency_key)
        print(job.id, flush=True)
        if watch:
            _exit_with(watch_job(client, job.id, console))


@app.command()
def validate(
    document: Document,
    home: Home = None,
    models: Models = Path("models"),
    data: Data = Path("data"),
    picture: Annotated[Path | None, typer.Option(help="Draw which weights pair into this file, as SVG.")] = None,
) -> None:
    """Check a job: which weights pair, what could be transferred, memory and disk. Nothing is queued.

    Asks the service when there is one, else looks into --models and --data of this machine.
    """
    with _sentences():
        spec = read_document(document)
        profile = find_profile(home)
        if profile is None:
            from service.cli.job_file import check_here

            plan = check_here(spec, models, data)
        else:
            with Client(profile.url, profile.api_key) as client:
                plan = client.validate(spec).plan
        render.plan(console, plan)
        if picture is not None and plan.pairing is not None:
            picture.write_text(draw(plan.pairing), encoding="utf-8")
            console.print(f"the pairing is drawn in {picture}", markup=False)


@app.command()
def pack(
    sources: Annotated[list[Path], typer.Argument(help="A model's folder, or its checkpoints' in the order of time.")],
    rank: Annotated[int, typer.Option(min=1, max=65536, help="Rank of every matrix's factors W = B A.")],
    out: Annotated[Path, typer.Option(help="The file to write; jobs name it as source.model.pack.")],
    dtype: Annotated[str, typer.Option(help="float32, float16 for half the bytes, int8 for a quarter.")] = "float32",
) -> None:
    """Keep a source's factors in one small file, which stands for the source on hosts that never see it."""
    from service.cli.pack import run_pack

    with _sentences():
        raise typer.Exit(run_pack(sources, rank, out, dtype))


@app.command()
def status(
    job_id: Annotated[str | None, typer.Argument(help="The job's id; without one, all jobs are listed.")] = None,
    home: Home = None,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    label: Annotated[str | None, typer.Option(help="Only jobs with this label, name=value.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
) -> None:
    """Show a job and its trials, or list the newest jobs."""
    with _client(home) as client:
        if job_id is None:
            render.jobs(console, client.jobs(status=state, label=label, limit=limit))
        else:
            render.job(console, client.get(job_id))


@app.command()
def watch(job_id: JobId, home: Home = None) -> None:
    """Watch a job until it has ended, then print its report. Leaving does not stop the job."""
    with _client(home) as client:
        _exit_with(watch_job(client, job_id, console))


@app.command()
def logs(
    job_id: JobId,
    trial: Annotated[str | None, typer.Option(help="Default: the trial that runs, or ran last.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Default: the newest.")] = None,
    tail: Annotated[int, typer.Option(min=1, help="Bytes from the end.")] = 65536,
    home: Home = None,
) -> None:
    """Print what a trial's processes printed."""
    with _client(home) as client:
        sys.stdout.write(client.logs(job_id, trial=trial, attempt=attempt, tail=tail))


@app.command()
def report(
    job_id: JobId,
    home: Home = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print the arms side by side and the verdict."""
    with _client(home) as client:
        found = client.report(job_id)
        if json:
            print(found.model_dump_json(indent=1))
        else:
            render.report(console, found)


@app.command()
def download(
    job_id: JobId, out: Annotated[Path, typer.Argument(help="Folder for the result.")], home: Home = None
) -> None:
    """Bring a job's result home, every file checked against its hash; a broken download goes on."""
    with _client(home) as client:
        files = client.download(job_id, out)
        console.print(f"{len(files)} files in {out}, each checked against its hash")


@app.command()
def cancel(job_id: JobId, home: Home = None) -> None:
    """Stop a job for good; its checkpoints are kept."""
    with _client(home) as client:
        _say(client.cancel(job_id))


@app.command()
def pause(job_id: JobId, home: Home = None) -> None:
    """Stop a job until it is resumed."""
    with _client(home) as client:
        _say(client.pause(job_id))


@app.command()
def resume(job_id: JobId, home: Home = None) -> None:
    """Go on with a paused job, or with a failed one that is marked retryable."""
    with _client(home) as client:
        _say(client.resume(job_id))


@app.command()
def delete(job_id: JobId, home: Home = None) -> None:
    """Forget a finished job and remove its files from the server."""
    with _client(home) as client:
        client.delete(job_id)


@app.command()
def workers(home: Home = None) -> None:
    """List the workers that are alive, and the devices of their hosts: who holds them, which are lent to nobody."""
    with _client(home) as client:
        render.workers(console, client.workers())
        render.devices(console, client.devices())


@devices_app.command("clear")
def clear_device(
    host: Annotated[str, typer.Argument(help="The host, as `mergenet workers` names it.")],
    device: Annotated[str, typer.Argument(help="The device's id.")],
    home: Home = None,
) -> None:
    """Lend a quarantined device again, once nothing runs on it any more. Needs an admin's key."""
    with _client(home) as client:
        render.devices(console, client.clear_device(host, device))


@keys_app.command("list")
def list_keys(home: Home = None) -> None:
    """List keys by name; the keys themselves are stored nowhere."""
    with _client(home) as client:
        for key in client.api_keys():
            print(f"{key.name}\t{','.join(key.scopes)}")


@keys_app.command("create")
def create_key(
    name: str,
    scopes: Annotated[str, typer.Option(help="Of read, submit and admin, separated by commas.")] = "read,submit",
    home: Home = None,
) -> None:
    """Make a key and print it; it is shown this once."""
    with _client(home) as client:
        print(client.create_key(name, tuple(scopes.split(","))).key)


@keys_app.command("revoke")
def revoke_key(name: str, home: Home = None) -> None:
    """Forget a key."""
    with _client(home) as client:
        client.revoke_key(name)


def main() -> None:
    """Entry point of the command `mergenet`."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


console = Console(width=None if sys.stdout.isatty() else LINE_WIDTH)
_errors = Console(stderr=True, soft_wrap=True, highlight=False)


def _read(document: Path, arms: str | None, seeds: str | None) -> JobSpec:
    return read_document(document, Override.read(arms, seeds))


@contextlib.contextmanager
def _client(home: Path | None) -> Iterator[Client]:
    with _sentences():
        profile = find_profile(home)
        if profile is None:
            raise Unavailable(
                "no service is known: set MERGENET_URL and MERGENET_API_KEY, or give the --home of a `mergenet up`"
            )
        with Client(profile.url, profile.api_key) as client:
            yield client


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Errors as sentences with pointers, never a traceback."""
    try:
        yield
    except MergeNetError as error:
        _fail(error)
    except OSError as error:
        place = error.filename or "a file"
        _fail(PathRefused(f"{place} cannot be used ({error.strerror or error}); give another path, or free some disk"))


def _fail(error: MergeNetError) -> NoReturn:
    _errors.print(f"mergenet: {error.message}", markup=False)
    for fault in error.errors:
        if fault.message not in error.message or len(error.errors) > 1:
            _errors.print(f"  {fault.pointer or '/'}: {fault.message}", markup=False)
    ours = isinstance(error, (Unavailable, StorageFull)) or error.code == "internal"
    raise typer.Exit(FAILED if ours else BAD_INPUT)


def _say(job: JobView) -> None:
    console.print(f"{job.id} is {job.state}: {job.reason}", markup=False)


def _exit_with(succeeded: bool) -> NoReturn:
    raise typer.Exit(0 if succeeded else FAILED)
