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

from mergenet_core.errors import Forbidden, Unauthenticated
from mergenet_core.records.api_keys import ApiKey, Scope
from mergenet_core.store.api_keys import find_key
from service.server.dependencies import Ctx

_bearer = HTTPBearer(auto_error=False, description="An API key from `mergenet up` or `mergenet keys create`.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key in a header of its own.")
_ENVIRONMENT = ApiKey(name="operator", scopes=("admin",))
_NO_AUTH = ApiKey(name="anonymous", scopes=("admin",))


def authenticate(
    request: Request,
    needed: SecurityScopes,
    context: Ctx,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
) -> ApiKey:
    """The request's API key, if it has the needed scopes. Raises: `Unauthenticated`, `Forbidden`."""
    found = _find(context, bearer.credentials if bearer else header)
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


def _find(context: Ctx, key: str | None) -> ApiKey:
    settings = context.settings
    if settings.insecure_no_auth:
        return _NO_AUTH
    if not key:
        raise Unauthenticated("the request has no API key; send it as 'Authorization: Bearer …' or 'X-API-Key: …'")
    own = settings.api_key
    # compare_digest accepts text in ASCII only
    if own is not None and hmac.compare_digest(own.get_secret_value().encode(), key.encode()):
        return _ENVIRONMENT
    found = find_key(context.redis, key)
    if found is None:
        raise Unauthenticated("the API key is unknown or was revoked; `mergenet keys list` shows the valid ones")
    return found
