"""API keys: list, create, revoke."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergenet_core.records.api_keys import Scope
from mergenet_core.store import api_keys
from service.schemas import KeyView, NewKey
from service.server.auth import needs
from service.server.dependencies import Ctx
from service.server.problem_details import responses
from service.server.request_body import Body, json_object

router = APIRouter(prefix="/keys", tags=["keys"], dependencies=[needs("admin")])


class KeyRequest(BaseModel):
    """The body of a request for a new key."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, pattern=r"^[\w.@-]+$")
    scopes: list[Scope] = Field(min_length=1)
    replace: bool = False
    """Revoke the key of that name, if there is one."""


@router.get("", responses={**responses(401, 403, 503)}, summary="List keys")
def list_keys(context: Ctx) -> list[KeyView]:
    """Names and scopes of all keys. The keys themselves are not stored."""
    return [KeyView(name=key.name, scopes=list(key.scopes)) for key in api_keys.list_keys(context.redis)]


@router.post(
    "",
    status_code=201,
    responses={**responses(401, 403, 409, 413, 422, 503)},
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": KeyRequest.model_json_schema()}}}
    },
    summary="Create a key",
)
def post_key(context: Ctx, body: Body) -> NewKey:
    """Create a key, which is shown only in this response. A key of the same name is kept unless `replace` is true."""
    try:
        wanted = KeyRequest.model_validate(json_object(body))
    except ValidationError as error:
        details = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(details) from None
    key = api_keys.create_key(context.redis, wanted.name, tuple(wanted.scopes), replace=wanted.replace)
    return NewKey(name=wanted.name, scopes=list(wanted.scopes), key=key)


@router.delete("/{name}", status_code=204, responses={**responses(401, 403, 404, 503)}, summary="Revoke a key")
def delete_key(context: Ctx, name: str) -> None:
    """Delete a key. Requests with it are refused from now on."""
    api_keys.revoke_keys(context.redis, name, required=True)
