"""The HTTP face as a whole: bad input, errors, headers, rate limits, idempotency, streams, and absent dependencies."""

import json
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import httpx
import pytest
from prometheus_client import CONTENT_TYPE_LATEST

from tests.integration.api import Running, is_problem, served_on
from tests.servers import Database, Servers

UNKNOWN = "01900000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
async def api(
    servers: Servers, module_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Running]:
    folder = tmp_path_factory.mktemp("api")
    async with served_on(servers, module_database, folder, rate_per_minute=100_000) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(api: Running) -> dict[str, Any]:
    return await api.new_tenant("face")


@pytest.fixture
async def client(api: Running, tenant: dict[str, Any]) -> AsyncGenerator[httpx.AsyncClient]:
    async with api.client(tenant["api_key"]) as found:
        yield found


BAD_BODIES = [
    ("POST", "/api/v1/search", b"", "request.malformed"),
    ("POST", "/api/v1/search", b'{"query": "x",}', "request.malformed"),
    ("POST", "/api/v1/search", b'{"query": "x"', "request.malformed"),
    ("POST", "/api/v1/search", b"\xff\xfe", "request.malformed"),
    ("POST", "/api/v1/search", b'{"query": "\\ud800"}', "request.malformed"),
    ("POST", "/api/v1/search", b'{"query": "a\\u0000b"}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": ""}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": 5}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "surprise": 1}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "k": 0}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "k": -1}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "k": 1000000000000000000000000}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "k": "5"}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "k": 1e400}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "mode": "magic"}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "filters": {"document_ids": ["nope"]}}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "filters": {"nope": 1}}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "filters": {"created_after": "soon"}}', "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "filters": {"tags": ["\\u0000"]}}', "request.invalid"),
    ("POST", "/api/v1/search", json.dumps({"query": "q" * 10_000}).encode(), "request.invalid"),
    ("POST", "/api/v1/search", b"[" * 100_000, "request.invalid"),
    ("POST", "/api/v1/collections", b'{"name": ""}', "request.invalid"),
    ("POST", "/api/v1/collections", b'{"name": "a\\u0007b"}', "request.invalid"),
    ("POST", "/api/v1/collections", b'{"name": null}', "request.invalid"),
    ("POST", "/api/v1/conversations", json.dumps({"title": "t" * 201}).encode(), "request.invalid"),
    ("POST", "/api/v1/conversations", b'{"document_ids": "all"}', "request.invalid"),
    (
        "POST",
        f"/api/v1/conversations/{UNKNOWN}/messages",
        json.dumps({"content": "c" * 10_001}).encode(),
        "request.invalid",
    ),
    ("POST", f"/api/v1/conversations/{UNKNOWN}/messages", b'{"content": "x", "stream": "yes"}', "request.invalid"),
    ("POST", "/api/v1/api-keys", b'{"name": "x", "role": "god"}', "request.invalid"),
    ("POST", "/api/v1/api-keys", b'{"name": "x", "expires_at": 5}', "request.invalid"),
    ("POST", "/api/v1/members", b'{"email": "not an address", "password": "long enough"}', "request.invalid"),
    ("POST", "/api/v1/members", b'{"email": "a@b.c", "password": "short"}', "request.invalid"),
    ("PATCH", f"/api/v1/documents/{UNKNOWN}", b'{"visibility": "secret"}', "request.invalid"),
    ("PATCH", f"/api/v1/documents/{UNKNOWN}", b'{"id": 5}', "request.invalid"),
    ("PATCH", f"/api/v1/documents/{UNKNOWN}", json.dumps({"name": "n" * 256}).encode(), "request.invalid"),
    ("POST", "/api/v1/search", b'{"query": "x", "k": NaN}', "request.malformed"),
]


@pytest.mark.parametrize(("method", "path", "body", "code"), BAD_BODIES)
async def test_bad_bodies(client: httpx.AsyncClient, method: str, path: str, body: bytes, code: str) -> None:
    answer = await client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    is_problem(answer, 400, code)


async def test_malformed_json_names_the_place(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/api/v1/search", content=b'{\n "query": "x",\n "k": ?\n}', headers={"Content-Type": "application/json"}
    )
    assert answer.json()["errors"][0]["line"] == 3
    assert "line 3, column 7" in answer.json()["detail"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=0",
        "limit=100000000000000000000000000",
        "limit=abc",
        "limit=",
        "limit=1.5",
        "cursor=zzz",
        "cursor=%00",
        "cursor=" + "A" * 3000,
        "status=lost",
        "source_type=smell",
        "collection_id=nope",
        "name=a%00b",
        "tag=%00",
        "tag=" + "x" * 500,
    ],
)
async def test_bad_parameters(client: httpx.AsyncClient, query: str) -> None:
    is_problem(await client.get(f"/api/v1/documents?{query}"), 400, "request.invalid")


@pytest.mark.parametrize("path", ["tasks", "dead-letters", "collections", "conversations", "members", "api-keys"])
@pytest.mark.parametrize("query", ["limit=-1", "limit=0", "cursor=zzz", "cursor=bnVsbA", "cursor=WyJ4Il0"])
async def test_bad_pages_of_every_list(client: httpx.AsyncClient, path: str, query: str) -> None:
    is_problem(await client.get(f"/api/v1/{path}?{query}"), 400, "request.invalid")


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
async def test_a_time_that_utc_does_not_have_is_named(client: httpx.AsyncClient, moment: str) -> None:
    named = {
        "filters.created_after": client.post(
            "/api/v1/search", json={"query": "x", "filters": {"created_after": moment}}
        ),
        "filters.created_before": client.post(
            "/api/v1/search", json={"query": "x", "filters": {"created_before": moment}}
        ),
        "expires_at": client.post("/api/v1/api-keys", json={"name": "x", "expires_at": moment}),
        "after": client.get("/api/v1/dead-letters", params={"after": moment}),
        "before": client.post("/api/v1/dead-letters/redrive", json={"before": moment}),
        "from": client.get("/api/v1/usage", params={"from": moment}),
        "to": client.get("/api/v1/usage", params={"to": moment}),
    }
    for field, asked in named.items():
        answer = await asked
        is_problem(answer, 400, "request.invalid")
        assert [error["field"] for error in answer.json()["errors"]] == [field]


LISTS = ["documents", "tasks", "dead-letters", "collections", "conversations", "members", "api-keys"]
NO_LISTS = ["me", f"documents/{UNKNOWN}", f"documents/{UNKNOWN}/content"]


@pytest.mark.parametrize("path", [*LISTS, *NO_LISTS])
async def test_a_parameter_that_is_not_there_is_named(client: httpx.AsyncClient, path: str) -> None:
    for query in ("foo=1", "foo", "foo=&limit=5", "%ED%A0%80=1&foo=2"):
        answer = await client.get(f"/api/v1/{path}?{query}")
        is_problem(answer, 400, "request.invalid")
        assert "foo" in {error["field"] for error in answer.json()["errors"]}
        assert "foo" in answer.json()["detail"]


async def test_unknown_parameters_elsewhere(api: Running, client: httpx.AsyncClient) -> None:
    is_problem(await client.post("/api/v1/search?k=5", json={"query": "x"}), 400, "request.invalid")
    known = await client.get("/api/v1/documents?limit=5&status=ready&source_type=document&tag=a&name=b")
    assert known.status_code == 200
    assert (await client.get("/healthz?now=1")).status_code == 200
    async with api.client() as stranger:
        is_problem(await stranger.get("/api/v1/documents?foo=1"), 401, "auth.missing_token")
        answer = await stranger.post("/api/v1/auth/token?foo=1", json={"email": "a@b.c", "password": "x"})
        is_problem(answer, 400, "request.invalid")


@pytest.mark.parametrize("text", ["name=%ff%fe", "name=%ED%A0%80", "tag=💥"])
async def test_strange_bytes_in_a_query_find_nothing(client: httpx.AsyncClient, text: str) -> None:
    answer = await client.get(f"/api/v1/documents?{text}")
    assert answer.status_code in (200, 400), answer.text


IDS = [
    ("GET", "documents/{}", None),
    ("GET", "documents/{}/content", None),
    ("GET", "documents/{}/chunks", None),
    ("PATCH", "documents/{}", {"tags": []}),
    ("DELETE", "documents/{}", None),
    ("PATCH", "collections/{}", {"name": "x"}),
    ("DELETE", "collections/{}", None),
    ("GET", "tasks/{}", None),
    ("POST", "tasks/{}/retry", None),
    ("POST", "tasks/{}/cancel", None),
    ("GET", "dead-letters/{}", None),
    ("DELETE", "dead-letters/{}", None),
    ("POST", "dead-letters/{}/redrive", None),
    ("GET", "conversations/{}", None),
    ("PATCH", "conversations/{}", {"title": "x"}),
    ("DELETE", "conversations/{}", None),
    ("GET", "conversations/{}/messages", None),
    ("POST", "conversations/{}/messages", {"content": "x"}),
    ("POST", "conversations/{}/messages/" + UNKNOWN + "/feedback", {"rating": 1}),
    ("POST", "conversations/{}/messages/" + UNKNOWN + "/regenerate", {}),
    ("PATCH", "conversations/{}/messages/" + UNKNOWN, {"content": "x"}),
    ("POST", "conversations/{}/branch", {"message_id": UNKNOWN}),
    ("DELETE", "api-keys/{}", None),
    ("PATCH", "members/{}", {"role": "viewer"}),
    ("DELETE", "members/{}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), IDS)
async def test_a_malformed_id_is_answered_like_an_unknown_one(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None
) -> None:
    unknown = await client.request(method, "/api/v1/" + path.format(UNKNOWN), json=body)
    is_problem(unknown, 404)
    for text in ("nope", "1", "%00", "%2e%2e", UNKNOWN[:-1], "'or'1'='1"):
        answer = await client.request(method, "/api/v1/" + path.format(text), json=body)
        assert answer.status_code == 404
        assert answer.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}


async def test_unknown_paths_methods_and_types(client: httpx.AsyncClient) -> None:
    is_problem(await client.get("/nope"), 404, "request.not_found")
    is_problem(await client.get("/api/v1/nope"), 404, "request.not_found")
    wrong = await client.put("/api/v1/documents")
    is_problem(wrong, 405, "request.method_not_allowed")
    assert {"GET", "POST"} <= {name.strip() for name in wrong.headers["allow"].split(",")}
    for path, methods in (("/api/v1/documents", "GET, OPTIONS, POST"), ("/api/v1/search", "OPTIONS, POST")):
        asked = await client.options(path)
        assert (asked.status_code, asked.headers["allow"]) == (204, methods)
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/xml"):
        answer = await client.post("/api/v1/search", content=b"{}", headers={"Content-Type": content_type})
        is_problem(answer, 415, "request.unsupported_media_type")
    answer = await client.post("/api/v1/search", content=b" " * 2_000_000, headers={"Content-Type": "application/json"})
    is_problem(answer, 413, "request.too_large")


async def test_no_credential_and_a_bad_one(api: Running) -> None:
    async with api.client() as client:
        is_problem(await client.get("/api/v1/documents"), 401, "auth.missing_token")
        for scheme in ("Basic abc", "Bearer", "bearer", ""):
            answer = await client.get("/api/v1/documents", headers={"Authorization": scheme})
            is_problem(answer, 401)
        for bad in ("dh_" + "A" * 43, "dh_", "x.y.z", "x" * 10_000, "eyJhbGciOiJub25lIn0.e30."):
            answer = await client.get("/api/v1/documents", headers={"Authorization": f"Bearer {bad}"})
            is_problem(answer, 401, "auth.invalid_token")


async def test_ids_and_headers_of_every_answer(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/api/v1/me", "/nope", "/api/v1/documents?limit=-1", "/docs"):
        answer = await client.get(path, headers={"X-Request-ID": "mine-42"})
        assert answer.headers["x-request-id"] == "mine-42"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "content-security-policy" in answer.headers
        assert "server" not in answer.headers
        assert answer.headers.get_list("x-request-id") == ["mine-42"]
    made = (await client.get("/healthz")).headers["x-request-id"]
    assert uuid.UUID(made).version == 7


async def test_a_request_is_logged_with_its_ids_and_without_its_words(
    client: httpx.AsyncClient, tenant: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    await client.get(
        f"/api/v1/documents/{UNKNOWN}?name=sesame",
        headers={"X-Request-ID": "find-me", "traceparent": f"00-{trace}-b7ad6b7169203331-01"},
    )
    line = next(line for line in capfd.readouterr().err.splitlines() if "find-me" in line)
    fields = json.loads(line)
    assert fields["route"] == "/api/v1/documents/{document_id}"
    assert (fields["status"], fields["trace_id"], fields["tenant_id"]) == (400, trace, tenant["id"])
    assert fields["user_id"] == tenant["owner"]["id"]
    assert "sesame" not in line
    assert UNKNOWN not in line


async def test_metrics_know_routes_and_no_tenant(client: httpx.AsyncClient, tenant: dict[str, Any]) -> None:
    await client.get(f"/api/v1/documents/{UNKNOWN}")
    await client.request("BREW", "/api/v1/documents")
    answer = await client.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE_LATEST  # Prometheus takes no other
    assert 'http_requests_total{method="GET",route="/api/v1/documents/{document_id}",status="404"}' in answer.text
    assert "BREW" not in answer.text
    for private in (tenant["id"], tenant["owner"]["id"], tenant["name"], UNKNOWN, "face.example"):
        assert private not in answer.text


async def test_the_description_is_public(api: Running) -> None:
    async with api.client() as client:
        document = (await client.get("/openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        assert document["components"]["schemas"]["SearchIn"]["additionalProperties"] is False
        assert "content" not in document["paths"]["/api/v1/uploads"]["options"]["responses"]["204"]
        for path in ("/openapi.json", "/docs", "/metrics"):
            told = await client.head(path)
            assert (told.status_code, told.content) == (200, b"")
            assert int(told.headers["content-length"]) > 0
        page = await client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert (await client.get("/schema")).status_code == 404


async def test_readiness_tells_what_is_missing(api: Running) -> None:
    async with api.client() as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json()["status"] == "degraded"  # no model process runs in this test
        checks = answer.json()["checks"]
        assert {name: check["status"] for name, check in checks.items()} == {
            "postgres": "up",
            "migrations": "up",
            "redis": "up",
            "objects": "up",
            "models": "down",
            "clamd": "off",
        }
        assert all(check["ms"] >= 0 for check in checks.values())
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_are_answered_to_head_as_to_get(api: Running, path: str) -> None:
    async with api.client() as client:
        asked, read = await client.head(path), await client.get(path)
        assert (asked.status_code, read.status_code) == (200, 200)
        assert asked.content == b""
        assert asked.headers["content-type"] == read.headers["content-type"] == "application/json"
        assert "HEAD" in (await client.post(path)).headers["allow"]


async def test_an_absent_model_is_told_as_such(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/search", json={"query": "anything"})
    is_problem(answer, 503, "model.unavailable")
    assert int(answer.headers["retry-after"]) >= 1


async def test_an_absent_database_is_told_as_such(
    api: Running, client: httpx.AsyncClient, servers: Servers, module_database: Database
) -> None:
    assert (await client.get("/api/v1/documents")).status_code == 200
    conn = await asyncpg.connect(servers.superuser_dsn())
    try:
        await conn.execute(f"alter database {module_database.name} with allow_connections false")
        await conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", module_database.name
        )
        answer = await client.get("/api/v1/documents")
        is_problem(answer, 503, "database.unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await client.get("/healthz")).status_code == 200
    finally:
        await conn.execute(f"alter database {module_database.name} with allow_connections true")
        await conn.close()
    assert (await client.get("/api/v1/documents")).status_code == 200


async def test_an_unknown_conversation_is_a_problem_even_for_a_stream(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"/api/v1/conversations/{UNKNOWN}/messages", json={"content": "x", "stream": True})
    is_problem(answer, 404, "conversation.not_found")
