"""Who asks, and what they may do: a key as `Authorization: Bearer …` or `X-API-Key`, with scopes.

Every route needs a key but the two health checks, which an orchestrator asks without one, and what merely describes
the API (`/schema/job`, `/openapi.json`, `/docs`): it tells nothing that the source does not, and editors and browsers
cannot send a key for it.
"""

from __future__ import annotations

import hmac
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from mergenet_core.errors import Forbidden, Unauthenticated
from mergenet_core.records.api_keys import ApiKey, Scope
from mergenet_core.store.api_keys import find_key
from service.server.dependencies import Ctx

_bearer = HTTPBearer(auto_error=False, description="An API key, as `mergenet up` or `mergenet keys create` gave it.")
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
    """The key that the request carries. Raises: `Unauthenticated`, `Forbidden`."""
    found = _known(context, bearer.credentials if bearer else header)
    missing = [scope for scope in needed.scopes if scope not in found.scopes]
    if missing and "admin" not in found.scopes:
        raise Forbidden(
            f"the key {found.name!r} has the scopes {', '.join(found.scopes)}; this needs {missing[0]}. "
            "Ask the operator for a key with it"
        )
    request.state.key_name = found.name
    return found


def needs(scope: Scope) -> Any:
    """Let only keys with this scope (or admin) in."""
    return Security(authenticate, scopes=[scope])


def _known(context: Ctx, key: str | None) -> ApiKey:
    settings = context.settings
    if settings.insecure_no_auth:
        return _NO_AUTH
    if not key:
        raise Unauthenticated("the request carries no key; send it as 'Authorization: Bearer …' or 'X-API-Key: …'")
    own = settings.api_key
    # compare_digest takes text in ASCII only
    if own is not None and hmac.compare_digest(own.get_secret_value().encode(), key.encode()):
        return _ENVIRONMENT
    found = find_key(context.redis, key)
    if found is None:
        raise Unauthenticated("the key is not known, or was revoked; `mergenet keys list` names those that are")
    return found
