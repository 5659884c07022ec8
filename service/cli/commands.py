"""The command line: `mergenet up | run | submit | watch | status | logs | report | download | … | workers | keys`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from mergenet_core import __version__
from mergenet_core.errors import MergeNetError, PathRefused, StorageFull, Unavailable
from mergenet_core.spec.job import JobSpec
from service.cli import render
from service.cli.job_file import Override, read_document, read_scopes
from service.cli.pairing_svg import draw
from service.cli.watch import watch_job
from service.client import Client
from service.client.profile import DEFAULT_HOME, Profile, find_profile
from service.schemas import JobView

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train a model with knowledge transferred from the weights of another, different model.",
)
keys_app = typer.Typer(no_args_is_help=True, help="List, create and revoke API keys.")
app.add_typer(keys_app, name="keys")
devices_app = typer.Typer(no_args_is_help=True, help="Manage the hosts' devices; `mergenet workers` lists them.")
app.add_typer(devices_app, name="devices")

FAILED, BAD_INPUT = 1, 2
INTERRUPTED = 130
LINE_WIDTH = 2_000
"""Line width where the output is not a terminal."""

Document = Annotated[Path, typer.Argument(help="Job document, YAML or JSON; - reads standard input.")]
KeyName = Annotated[str, typer.Argument(help="Name of the key.")]
JobId = Annotated[str, typer.Argument(help="Job id.")]
Home = Annotated[
    Path | None,
    typer.Option(help="Home folder of a `mergenet up`, which holds its address and key.", show_default="MERGENET_HOME"),
]
LocalHome = Annotated[Path, typer.Option(envvar="MERGENET_HOME", help="Folder for jobs, results, records and logs.")]
Models = Annotated[Path, typer.Option(help="Folder in which job documents name models.")]
Data = Annotated[Path, typer.Option(help="Folder in which job documents name data.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=64,
        help="Trials to train at the same time.",
        show_default="MERGENET_WORKERS, or one for each GPU, or one",
    ),
]
Arms = Annotated[
    str | None, typer.Option(help="Arms to train instead of the document's, such as transfer,control, or all.")
]
Seeds = Annotated[str | None, typer.Option(help="Seeds to use instead of the document's, such as 0,1,2.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mergenet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def up(
    home: LocalHome = DEFAULT_HOME,
    models: Models = Path("models"),
    data: Data = Path("data"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 chooses a free one.")] = 8000,
    workers: Workers = None,
) -> None:
    """Start the service on this machine: Redis, the API and workers. Ctrl-C stops all of them."""
    from service.local.local_service import LocalOptions, run_service

    def ready(profile: Profile) -> None:
        console.print(f"The service is running at [bold]{profile.url}[/bold]; API documentation: {profile.url}/docs")
        console.print(f"Address and API key: {home}/client.json. Logs: {home}/logs. Press Ctrl-C to stop.")

    with _errors_as_text():
        run_service(LocalOptions(home, models, data, host, port, workers), ready)


@app.command()
def run(
    document: Document,
    home: LocalHome = DEFAULT_HOME,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result.", show_default="the job's folder in the home")
    ] = None,
    models: Models = Path("models"),
    data: Data = Path("data"),
    workers: Workers = None,
    arms: Arms = None,
    seeds: Seeds = None,
) -> None:
    """Run one job on this machine: start the service, submit, watch, download, stop the service.

    After an interruption the same command continues from the last checkpoint.
    """
    from service.cli.run import run_job
    from service.local.local_service import LocalOptions

    with _errors_as_text():
        spec = read_document(document, Override.read(arms, seeds))
        succeeded = run_job(spec, LocalOptions(home, models, data, port=0, workers=workers or None), out, console)
    raise typer.Exit(0 if succeeded else FAILED)


@app.command()
def submit(
    document: Document,
    home: Home = None,
    arms: Arms = None,
    seeds: Seeds = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="Key of this submission; sent again with the same document it gives the same job."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Watch the job until it has ended.")] = False,
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
    picture: Annotated[Path | None, typer.Option(help="SVG file to draw the pairs of weights into.")] = None,
) -> None:
    """Check a job without queueing it: pairs of weights, transferable parameters, memory and disk.

    The check runs in the service if there is one, else on this machine with --models and --data.
    """
    with _errors_as_text():
        spec = read_document(document)
        profile = find_profile(home)
        if profile is None:
            from service.cli.job_file import plan_here

            plan = plan_here(spec, models, data)
        else:
            with Client(profile.url, profile.api_key) as client:
                plan = client.validate(spec).plan
        render.plan(console, plan)
        if picture is not None and plan.pairing is not None:
            picture.write_text(draw(plan.pairing), encoding="utf-8")
            console.print(f"Picture of the pairing: {picture}", markup=False)


@app.command()
def pack(
    sources: Annotated[list[Path], typer.Argument(help="Folder of a model, or of its checkpoints, oldest first.")],
    rank: Annotated[int, typer.Option(min=1, max=65536, help="Rank of the factors of every matrix, W = B A.")],
    out: Annotated[Path, typer.Option(help="File to write; jobs name it as source.model.pack.")],
    dtype: Annotated[str, typer.Option(help="float32, float16 (half the size) or int8 (a quarter).")] = "float32",
) -> None:
    """Write low-rank factors of a source model into one small file that jobs can use instead of the source."""
    from service.cli.pack import run_pack

    with _errors_as_text():
        raise typer.Exit(run_pack(sources, rank, out, dtype))


@app.command()
def status(
    job_id: Annotated[str | None, typer.Argument(help="Job id; without one, the newest jobs are listed.")] = None,
    home: Home = None,
    state: Annotated[str | None, typer.Option(help="List only jobs in this state.")] = None,
    label: Annotated[str | None, typer.Option(help="List only jobs with this label, written name=value.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Number of jobs to list.")] = 20,
) -> None:
    """Show a job and its trials, or list the newest jobs."""
    with _client(home) as client:
        if job_id is None:
            render.jobs(console, client.jobs(status=state, label=label, limit=limit))
        else:
            render.job(console, client.get(job_id))


@app.command()
def watch(job_id: JobId, home: Home = None) -> None:
    """Watch a job until it has ended, then print its report. Ctrl-C ends the watching, not the job."""
    with _client(home) as client:
        _exit_with(watch_job(client, job_id, console))


@app.command()
def logs(
    job_id: JobId,
    trial: Annotated[
        str | None, typer.Option(help="Trial id.", show_default="the trial that runs, or ran last")
    ] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Attempt number.", show_default="the newest")] = None,
    tail: Annotated[int, typer.Option(min=1, help="Number of bytes to print, from the end of the log.")] = 65536,
    home: Home = None,
) -> None:
    """Print the log of a trial's processes."""
    with _client(home) as client:
        sys.stdout.write(client.logs(job_id, trial=trial, attempt=attempt, tail=tail))


@app.command()
def report(
    job_id: JobId,
    home: Home = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Print the report of a finished job: the arms side by side, and the verdict."""
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
    """Download a job's result and check every file's SHA-256. Run it again to resume a broken download."""
    with _client(home) as client:
        files = client.download(job_id, out)
        console.print(f"Downloaded {len(files)} files to {out}; their SHA-256 hashes match", markup=False)


@app.command()
def cancel(job_id: JobId, home: Home = None) -> None:
    """Stop a job for good. Its checkpoints are kept."""
    with _client(home) as client:
        _print_state(client.cancel(job_id))


@app.command()
def pause(job_id: JobId, home: Home = None) -> None:
    """Stop a job until it is resumed."""
    with _client(home) as client:
        _print_state(client.pause(job_id))


@app.command()
def resume(job_id: JobId, home: Home = None) -> None:
    """Continue a paused job, or a failed one that is marked retryable."""
    with _client(home) as client:
        _print_state(client.resume(job_id))


@app.command()
def delete(job_id: JobId, home: Home = None) -> None:
    """Delete a finished job and its files from the server."""
    with _client(home) as client:
        client.delete(job_id)


@app.command()
def workers(home: Home = None) -> None:
    """List the workers that are alive and the devices of their hosts."""
    with _client(home) as client:
        render.workers(console, client.workers())
        render.devices(console, client.devices())


@app.command()
def gc(
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the folders; otherwise they are only listed.")
    ] = False,
    home: Home = None,
) -> None:
    """List folders on the server that belong to no job, or remove them. Needs an admin key."""
    with _client(home) as client:
        found = client.gc(delete=delete)
        for folder in found:
            console.print(f"{folder.job}\t{folder.bytes / 1e6:.1f} MB", markup=False)
        what = "removed" if delete else "found; --delete removes them"
        console.print(f"{len(found)} folders of no job {what}", markup=False)


@devices_app.command("clear")
def clear_device(
    host: Annotated[str, typer.Argument(help="Host name, as in `mergenet workers`.")],
    device: Annotated[str, typer.Argument(help="Device id, as in `mergenet workers`.")],
    home: Home = None,
) -> None:
    """End a device's quarantine once no process uses it any more. Needs an admin key."""
    with _client(home) as client:
        render.devices(console, client.clear_device(host, device))


@keys_app.command("list")
def list_keys(home: Home = None) -> None:
    """List the names and scopes of all keys. The keys themselves are not stored."""
    with _client(home) as client:
        for key in client.api_keys():
            print(f"{key.name}\t{','.join(key.scopes)}")


@keys_app.command("create")
def create_key(
    name: KeyName,
    scopes: Annotated[str, typer.Option(help="Any of read, submit and admin, separated by commas.")] = "read,submit",
    replace: Annotated[bool, typer.Option("--replace", help="Revoke the key of that name, if there is one.")] = False,
    home: Home = None,
) -> None:
    """Create a key and print it. It cannot be shown again. Needs an admin key."""
    with _client(home) as client:
        print(client.create_key(name, read_scopes(scopes), replace=replace).key)


@keys_app.command("revoke")
def revoke_key(name: KeyName, home: Home = None) -> None:
    """Delete a key. Needs an admin key."""
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
    with _errors_as_text():
        profile = find_profile(home)
        if profile is None:
            raise Unavailable(
                "no service found: set MERGENET_URL and MERGENET_API_KEY, or give the --home of a `mergenet up`"
            )
        with Client(profile.url, profile.api_key) as client:
            yield client


@contextlib.contextmanager
def _errors_as_text() -> Iterator[None]:
    """Print an error as a sentence for each wrong field, without a traceback, and exit."""
    try:
        yield
    except MergeNetError as error:
        _fail(error)
    except OSError as error:
        path = error.filename or "a file"
        _fail(PathRefused(f"{path} cannot be used ({error.strerror or error}); give another path, or free disk space"))


def _fail(error: MergeNetError) -> NoReturn:
    _errors.print(f"mergenet: {error.message}", markup=False)
    for field in error.errors:
        if field.message not in error.message or len(error.errors) > 1:
            _errors.print(f"  {field.pointer or '/'}: {field.message}", markup=False)
    not_the_input = isinstance(error, (Unavailable, StorageFull)) or error.code == "internal"
    raise typer.Exit(FAILED if not_the_input else BAD_INPUT)


def _print_state(job: JobView) -> None:
    console.print(f"{job.id} is {job.state}: {job.reason}", markup=False)


def _exit_with(succeeded: bool) -> NoReturn:
    raise typer.Exit(0 if succeeded else FAILED)
