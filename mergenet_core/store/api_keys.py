"""API keys as a Redis hash; only the SHA-256 of each is stored."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import cast

from redis import Redis

from mergenet_core.errors import FieldError, NotFound, SpecInvalid, StateConflict
from mergenet_core.records.api_keys import ANONYMOUS, OPERATOR, ApiKey, Scope
from mergenet_core.store import keys


def create_key(
    redis: Redis, name: str, scopes: tuple[Scope, ...], key: str | None = None, *, replace: bool = False
) -> str:
    """Store a key's hash and return the key, a new random one unless given.

    Raises: `StateConflict` if there is a key of that name, unless `replace`; `SpecInvalid` for a reserved name.
    """
    if name.casefold() in (OPERATOR, ANONYMOUS):
        raise SpecInvalid(
            f"name {name!r} is how the service itself appears in records and logs; take another",
            errors=(FieldError("/name", f"{name!r} is reserved; take another name"),),
        )
    if not replace and any(known.name == name for known in list_keys(redis)):
        raise StateConflict(f"there is a key named {name}; take another name, or replace it, which revokes the old one")
    key = key or f"mn_{secrets.token_urlsafe(32)}"
    revoke_keys(redis, name)
    redis.hset(keys.API_KEYS, _hash(key), ApiKey(name=name, scopes=scopes).model_dump_json())
    return key


def find_key(redis: Redis, key: str) -> ApiKey | None:
    """Who a key belongs to; the look-up is by hash, so its time reveals nothing of the key."""
    text = cast("str | None", redis.hget(keys.API_KEYS, _hash(key)))
    return None if text is None else ApiKey.model_validate_json(text)


def list_keys(redis: Redis) -> list[ApiKey]:
    """All known keys by name, without the keys themselves."""
    found = cast("dict[str, str]", redis.hgetall(keys.API_KEYS)).values()
    return sorted((ApiKey.model_validate(json.loads(text)) for text in found), key=lambda key: key.name)


def revoke_keys(redis: Redis, name: str, *, required: bool = False) -> None:
    """Forget the keys of that name. Raises: `NotFound` when `required` and there is none."""
    found = cast("dict[str, str]", redis.hgetall(keys.API_KEYS))
    hashes = [digest for digest, text in found.items() if json.loads(text)["name"] == name]
    if hashes:
        redis.hdel(keys.API_KEYS, *hashes)
    elif required:
        raise NotFound(f"there is no API key named {name}")


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
