"""The documentation page: one HTML file made from the OpenAPI document, without a script or an outside request."""

import base64
import hashlib
from html import escape
from typing import Any

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{margin-bottom:0}h2{margin-top:2.5rem;border-bottom:1px solid #d0d7de}
details{border:1px solid #d0d7de;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}summary b{display:inline-block;min-width:4.5rem}code,pre{font:14px/1.4 ui-monospace,monospace}
pre{background:#f6f8fa;padding:.6rem;overflow:auto;border-radius:6px}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;border-bottom:1px solid #eaeef2;padding:.2rem .6rem .2rem 0;vertical-align:top}
.role{color:#57606a;float:right}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}details,h2{border-color:#30363d}pre{background:#161b22}
td,th{border-color:#21262d}.role{color:#8b949e}}
"""
# The policy names the style sheet by its digest: nothing else on the page may style, run or load anything.
STYLE_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
PAGE_POLICY = f"default-src 'none'; style-src 'sha256-{STYLE_DIGEST}'; frame-ancestors 'none'; base-uri 'none'"
METHODS = ("get", "post", "put", "patch", "delete")


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    schemas = document.get("components", {}).get("schemas", {})
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} API</h1><p>Version {escape(info['version'])}. {escape(info['description'])} "
        'For machines: <a href="/openapi.json">/openapi.json</a>.</p>'
        "<p>Send <code>Authorization: Bearer …</code> with an API key or an access token.</p>"
        f"{_groups(document['paths'], schemas)}{_sockets(document['x-websockets'])}"
        f"{_schemas(schemas)}{_codes(schemas)}</body></html>"
    )


def _groups(paths: dict[str, Any], schemas: dict[str, Any]) -> str:
    groups: dict[str, list[str]] = {}
    for path, item in sorted(paths.items()):
        parts = path.split("/")
        name = parts[3] if path.startswith("/api/") and len(parts) > 3 else "operations"
        groups.setdefault(name, []).extend(
            _operation(method, path, item[method], schemas) for method in METHODS if method in item
        )
    return "".join(f'<h2 id="{escape(name)}">{escape(name)}</h2>{"".join(items)}' for name, items in groups.items())


def _sockets(sockets: dict[str, Any]) -> str:
    parts = [
        f'<details><summary><b>WS</b> <code>{escape(path)}</code><span class="role">{escape(item["x-role"])}</span>'
        f"</summary><p>{escape(item['description'])}</p><table>{_parameters(item['parameters'])}</table>"
        f"<p>Messages: {_type(item['message'])}</p></details>"
        for path, item in sorted(sockets.items())
    ]
    return f'<h2 id="websockets">WebSockets</h2>{"".join(parts)}' if parts else ""


def _parameters(parameters: list[dict[str, Any]]) -> str:
    return "".join(
        f"<tr><td><code>{escape(item['name'])}</code></td><td>{escape(item['in'])}"
        f"{', required' if item.get('required') else ''}</td><td>{_type(item.get('schema', {}))}</td>"
        f"<td>{escape(item.get('description') or '')}</td></tr>"
        for item in parameters
    )


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    role = f'<span class="role">{escape(operation["x-role"])}</span>' if "x-role" in operation else ""
    rows = _parameters(operation.get("parameters", []))
    bodies = "".join(
        f"<p>Body, <code>{escape(media)}</code>: {_type(content['schema'])}</p>{_inline(content['schema'])}"
        for media, content in operation.get("requestBody", {}).get("content", {}).items()
    )
    answers = "".join(
        f"<tr><td>{escape(status)}</td><td>{_answer(answer)}</td><td>{escape(answer.get('description', ''))}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code>{role}</summary>"
        f"<p>{escape(operation.get('description') or operation.get('summary') or '')}</p>"
        f"{f'<table>{rows}</table>' if rows else ''}{bodies}<table>{answers}</table></details>"
    )


def _answer(answer: dict[str, Any]) -> str:
    return ", ".join(_type(content.get("schema", {})) for content in answer.get("content", {}).values())


def _inline(schema: dict[str, Any]) -> str:
    return _properties(schema) if "properties" in schema else ""


def _schemas(schemas: dict[str, Any]) -> str:
    parts = [
        f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<p>{escape(schema.get('description') or '')}</p>{_properties(schema) or _type(schema)}</details>"
        for name, schema in sorted(schemas.items())
    ]
    return f"<h2>Schemas</h2>{''.join(parts)}"


def _properties(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{_type(item)}{', required' if name in required else ''}</td>"
        f"<td>{escape(item.get('description') or '')}</td></tr>"
        for name, item in schema.get("properties", {}).items()
    )
    return f"<table>{rows}</table>" if rows else ""


def _codes(schemas: dict[str, Any]) -> str:
    codes = schemas["Problem"]["properties"]["code"]["enum"]
    return (
        "<h2>Error codes</h2><ul>"
        + "".join(f'<li id="{escape(code)}"><code>{escape(code)}</code></li>' for code in codes)
        + "</ul>"
    )


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#schema-{name}">{name}</a>'
    for combined in ("oneOf", "anyOf"):
        if combined in schema:
            return " or ".join(_type(item) for item in schema[combined])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    kind = schema.get("type", "anything")
    return escape(" or ".join(kind) if isinstance(kind, list) else str(kind)) + (
        f" ({escape(schema['format'])})" if "format" in schema else ""
    )
