"""`/openapi.json`, and `/docs`: the same as a page without scripts. Nothing is loaded from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{font-family:ui-monospace,monospace}h3{margin-bottom:0}table{border-collapse:collapse}"
    "td{padding:.1rem .8rem .1rem 0;vertical-align:top}"
)


router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
def openapi(request: Request) -> JSONResponse:
    """The OpenAPI document."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
def page(request: Request) -> HTMLResponse:
    """Every route with its parameters and responses."""
    document = request.app.openapi()
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{title}</h1><p>{escape(document['info'].get('summary', ''))} For tools: ")
    parts.append("<a href=openapi.json>openapi.json</a>. The job document: <a href=schema/job>schema/job</a>.</p>")
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2><p>{escape(tag['description'])}</p>")
        for path, methods in document["paths"].items():
            parts += [_operation(path, method, one) for method, one in methods.items() if tag["name"] in one["tags"]]
    return HTMLResponse("\n".join(parts))


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [
        (
            f"{given['name']} ({given['in']})",
            given.get("description", ""),
        )
        for given in operation.get("parameters", [])
    ]
    rows += [(status, answer["description"]) for status, answer in operation["responses"].items()]
    cells = "".join(f"<tr><td><code>{escape(name)}</code><td>{escape(text)}" for name, text in rows)
    text = escape(f"{operation['summary']}. {operation.get('description', '')}")
    return f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{text}</p><table>{cells}</table>"
