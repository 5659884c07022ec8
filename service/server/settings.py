"""Settings of the API, in addition to those that it shares with the workers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from mergenet_core.settings import Settings

KEY_LENGTH = 16
"""Minimum length of MERGENET_API_KEY."""


class ServiceSettings(Settings):
    """Settings from environment variables that begin with MERGENET_, read once at the start."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on."""
    api_key: SecretStr | None = None
    """A key with every scope, kept in memory only; it can create more keys."""
    insecure_no_auth: bool = False
    """Require no key. Only for a machine that nobody else can reach."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    """Longest request body that is accepted."""
    max_streams: Annotated[int, Field(ge=1)] = 100
    """Event streams that may be open at a time."""
    max_streams_per_key: Annotated[int, Field(ge=1)] = 20
    """Event streams that one key may have open at a time."""
    unread_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """How long a client may read nothing of what waits for it before the kernel ends its connection."""
    wrong_keys_per_minute: Annotated[int, Field(ge=1)] = 30
    """Wrong keys from one address after which it gets 429 for further ones."""
    reconcile_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Time between two comparisons of the queue with the records."""

    @field_validator("api_key")
    @classmethod
    def _long_enough(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None or not key.get_secret_value():
            return None
        if len(key.get_secret_value()) < KEY_LENGTH:
            raise ValueError(f"MERGENET_API_KEY needs at least {KEY_LENGTH} characters")
        return key
