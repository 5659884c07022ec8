"""Authentication and authorization: an API key as `Authorization: Bearer …` or `X-API-Key`, with scopes.

Every route needs a key, except the two health checks, which orchestrators call without one, and the descriptions of
the API (`/schema/job`, `/openapi.json`, `/docs`): they reveal no more than the source code, and editors and browsers
cannot send a key for them.
"""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request, Security, params
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from mergenet_core.errors import Forbidden, TooManyRequests, Unauthenticated
from mergenet_core.records.api_keys import ANONYMOUS, OPERATOR, ApiKey, Scope
from mergenet_core.store.api_keys import find_key
from service.server.dependencies import Ctx

_bearer = HTTPBearer(auto_error=False, description="An API key from `mergenet up` or `mergenet keys create`.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key in a header of its own.")
_ENVIRONMENT = ApiKey(name=OPERATOR, scopes=("admin",))
_NO_AUTH = ApiKey(name=ANONYMOUS, scopes=("admin",))


def authenticate(
    request: Request,
    needed: SecurityScopes,
    context: Ctx,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
) -> ApiKey:
    """The request's API key, if it has the needed scopes.

    Raises: `Unauthenticated`, `Forbidden`, `TooManyRequests` after many wrong keys.
    """
    address = request.client.host if request.client is not None else ""
    found = _find(context, bearer.credentials if bearer else header, address)
    missing = [scope for scope in needed.scopes if scope not in found.scopes]
    if missing and "admin" not in found.scopes:
        raise Forbidden(
            f"the key {found.name!r} has the scopes {', '.join(found.scopes)}; this needs {missing[0]}. "
            "Ask the operator for a key with it"
        )
    request.state.key_name = found.name
    return found


def needs(scope: Scope) -> params.Depends:
    """A dependency that refuses keys without this scope (or admin)."""
    dependency: params.Depends = Security(authenticate, scopes=[scope])
    return dependency


def _find(context: Ctx, key: str | None, address: str) -> ApiKey:
    settings = context.settings
    if settings.insecure_no_auth:
        return _NO_AUTH
    if not key:
        raise Unauthenticated("the request has no API key; send it as 'Authorization: Bearer …' or 'X-API-Key: …'")
    if context.wrong_keys.refuses(address, key):
        raise TooManyRequests("too many wrong keys came from this address; correct the key, and wait a minute")
    found = _look_up(context, key)
    context.wrong_keys.note(address, key, right=found is not None)
    if found is None:
        raise Unauthenticated("the API key is unknown or was revoked; `mergenet keys list` shows the valid ones")
    return found


def _look_up(context: Ctx, key: str) -> ApiKey | None:
    own = context.settings.api_key
    # compare_digest accepts text in ASCII only
    if own is not None and hmac.compare_digest(own.get_secret_value().encode(), key.encode()):
        return _ENVIRONMENT
    return find_key(context.redis, key)
