"""Settings of the API and the workers, read from environment variables that begin with MERGENET_."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

from mergenet_core.storage.paths import JobFolder, Roots, job_folder


class Settings(BaseSettings):
    """What the operator of a service sets."""

    model_config = SettingsConfigDict(
        env_prefix="MERGENET_", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    home: Path = Path("mergenet-home")
    """Folder of jobs, checkpoints and artifacts, which API and workers must share."""
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """URL of Redis, with its password; Redis must append to disk (appendonly yes)."""
    model_roots: Annotated[tuple[Path, ...], NoDecode] = (Path("models"),)
    """Folders that jobs may name models in, separated by `:`."""
    data_roots: Annotated[tuple[Path, ...], NoDecode] = (Path("data"),)
    """Folders that jobs may name data in, separated by `:`."""
    hub: bool = False
    """Let jobs name models and datasets of the Hugging Face hub, pinned to a commit."""
    lease_seconds: Annotated[float, Field(ge=0.5, le=50)] = 15.0
    """How long a worker may be silent before its trial is given to another worker; less than RQ's own limit of 60 s."""
    grace_seconds: Annotated[float, Field(ge=1)] = 60.0
    """How long a trial that is asked to stop may take to write its checkpoint."""
    silence_seconds: Annotated[float, Field(ge=1)] = 30.0
    """How long a training process may send no heartbeat, or wait idly in a step, before the trial is started again."""
    stall_seconds: Annotated[float, Field(ge=1)] = 600.0
    """How long a step may take, a trial do nothing between steps, and a process wait for the others in a collective."""
    ray_address: str | None = None
    """HOST:PORT of the fleet's head, for trials on several hosts; the file with Ray's token is RAY_AUTH_TOKEN_PATH."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of a training process; default: the cores that the worker may use, divided between the workers."""
    workers: Annotated[int, Field(ge=1, le=64)] | None = None
    """Trials that this host runs at a time; default: one per GPU, or one where there is no GPU."""
    cpu_slots: Annotated[int, Field(ge=1, le=512)] | None = None
    """Without a GPU: how many processes may train at a time; default: the number of cores that the worker may use."""
    ageing_seconds: Annotated[float, Field(ge=0)] = 300.0
    """How long a trial may wait for devices before trials that need fewer may no longer overtake it."""

    @field_validator("model_roots", "data_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(Path(root) for root in value.split(":") if root) if isinstance(value, str) else value

    @property
    def roots(self) -> Roots:
        """The folders that job documents may name."""
        return Roots(models=self.model_roots, data=self.data_roots, hub=self.hub)

    def job_folder(self, job_id: str) -> JobFolder:
        """The folder of a job."""
        return job_folder(self.home, job_id)

    def redis(self, *, decode: bool = True, timeout_seconds: float = 5.0, retries: int = 3) -> Redis:
        """A connection that retries shortly while Redis restarts; without `retries` it fails at once."""
        return Redis.from_url(
            self.redis_url.get_secret_value(),
            decode_responses=decode,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries),
            retry_on_error=[ConnectionError, TimeoutError, BusyLoadingError] if retries else [],
            health_check_interval=15,
        )
