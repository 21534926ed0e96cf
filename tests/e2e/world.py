"""A tenant with one of everything that has an id, made through the API, for the tests of isolation."""

import asyncio
import base64
import secrets
import time
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import jwt
import msgspec

from internal.repositories.migrate import OWNER
from tests.archives import zipped
from tests.e2e.product import Product, finished, upload

PASSWORD = "seventeen quiet lighthouses"
ROLES = ("owner", "admin", "member", "viewer")
SPARES, SPARE_FILES = 30, 18
BROKEN = b"%PDF-1.4\nno object, no table, no end\n"


class Person(msgspec.Struct, frozen=True):
    """A member of a tenant, signed in, with a conversation of their own in which one question was answered."""

    id: str
    email: str
    role: str
    token: str
    refresh_token: str
    conversation: str
    message: str
    memory: str


class World(msgspec.Struct, frozen=True):
    """A tenant. `ids` maps a kind of id to its values; of those in `private` only the owner may know."""

    tenant: str
    api_key: str
    people: dict[str, Person]
    ids: dict[str, list[Any]]
    private: dict[str, list[Any]]

    def own(self, role: str) -> dict[str, Any]:
        """What a member of this role fills into the places that aren't probed."""
        person = self.people[role]
        first = {kind: values[0] for kind, values in self.ids.items()}
        return {
            **first,
            "conversation": person.conversation,
            "message": person.message,
            "memory": person.memory,
        }


def build(product: Product, *, spares: bool = True) -> World:
    """Makes a tenant with shared, private, broken and dead things, and waits until all its tasks have ended.

    With `spares` there are enough names, addresses, files and keys for each probe to spend one of its own.
    """
    mark, up = secrets.token_hex(8), product.up
    with httpx.Client(base_url=up["url"], trust_env=False, timeout=60) as visitor:
        made = _done(
            visitor.post(
                "/api/v1/tenants",
                json={
                    "name": f"Tenant {mark}",
                    "owner_email": f"owner-{mark}@world.example",
                    "owner_password": PASSWORD,
                },
                headers={"Authorization": f"Bearer {up['platform_token']}"},
            )
        )
        with product.client(made["api_key"]) as owner:
            batch = _batch(owner, mark)
            documents = _documents(product, owner, mark, SPARE_FILES if spares else 1)
            people = _people(visitor, owner, made["owner"]["id"], mark)
            return _world(owner, made, people, documents, batch, SPARES if spares else 1)


class _Documents(msgspec.Struct, frozen=True):
    shared: list[dict[str, Any]]
    private: list[dict[str, Any]]
    broken: dict[str, Any]
    dead: dict[str, Any]
    texts: list[bytes]
    hidden_texts: list[bytes]


def _documents(product: Product, owner: httpx.Client, mark: str, count: int) -> _Documents:
    texts = [f"The keeper of lighthouse {secrets.token_hex(8)} counts ships.".encode() for _ in range(count)]
    hidden = [f"The keeper of lightship {secrets.token_hex(8)} counts ships.".encode() for _ in range(count)]
    shared = [
        upload(owner, f"shared-{mark}.txt", text, tags=f"tag-{mark}", collection=f"First {mark}") for text in texts
    ]
    private = [upload(owner, f"private-{mark}.txt", text, visibility="private") for text in hidden]
    broken = upload(owner, f"broken-{mark}.pdf", BROKEN + mark.encode())
    dead = upload(owner, f"dead-{mark}.pdf", BROKEN + mark.encode()[::-1])
    for item in (*shared, *private):
        assert finished(owner, item["task_id"])["status"] == "succeeded"
    for item in (broken, dead):
        assert finished(owner, item["task_id"])["status"] == "failed"
    asyncio.run(_bury(product, dead["task_id"]))
    _replace(owner, shared[-1]["document_id"], mark)
    return _Documents(shared, private, broken, dead, texts, hidden)


def _replace(owner: httpx.Client, document: str, mark: str) -> None:
    """Gives a document a history, and waits until what was read from the old version is gone."""
    data = f"The keeper of lighthouse {mark} counts ships again.".encode()
    answer = owner.put(f"/api/v1/documents/{document}/content", files={"file": (f"second-{mark}.txt", data)})
    assert finished(owner, _done(answer)["task_id"])["status"] == "succeeded"
    until = time.monotonic() + 90
    while any(owner.get(f"/api/v1/tasks?status={status}").json()["items"] for status in ("queued", "running")):
        assert time.monotonic() < until
        time.sleep(0.1)


def _people(visitor: httpx.Client, owner: httpx.Client, owner_id: str, mark: str) -> dict[str, Person]:
    people = {"owner": _signed_in(visitor, owner_id, "owner", mark)}
    for role in ROLES[1:]:
        body = {"email": f"{role}-{mark}@world.example", "password": PASSWORD, "role": role}
        people[role] = _signed_in(visitor, _done(owner.post("/api/v1/members", json=body))["id"], role, mark)
    return people


def _world(
    owner: httpx.Client, made: dict[str, Any], people: dict[str, Person], documents: _Documents, batch: str, spares: int
) -> World:
    names = [f"Collection {secrets.token_hex(8)}" for _ in range(spares)]
    emails = [f"spare-{secrets.token_hex(8)}@world.example" for _ in range(spares)]
    keys = [f"idempotent-{secrets.token_hex(8)}" for _ in range(6 * spares)]
    collections = [_done(owner.post("/api/v1/collections", json={"name": name}))["id"] for name in names]
    for email in emails:
        _done(owner.post("/api/v1/members", json={"email": email, "password": PASSWORD, "role": "viewer"}))
    for key in keys:
        body = {"query": "ships", "mode": "keyword"}
        _done(owner.post("/api/v1/search", json=body, headers={"Idempotency-Key": key}))
    extra = _done(owner.post("/api/v1/api-keys", json={"name": "A spare key", "role": "viewer"}))
    conversation, message = people["owner"].conversation, people["owner"].message
    unfinished = _begun_upload(owner)
    created = owner.get(f"/api/v1/documents/{documents.shared[0]['document_id']}").json()["created_at"]
    shared, private = documents.shared[0], documents.private[0]
    places = {
        "conversation_place": [[created, conversation]],
        "message_place": [[created, message]],
    }
    return World(
        tenant=made["id"],
        api_key=made["api_key"],
        people=people,
        ids={
            **places,
            "api_key": [extra["id"]],
            "archive": [zipped({"archived.txt": documents.texts[0]})],
            "batch": [batch],
            "collection": collections[:1],
            "collection_name": names,
            "content": documents.texts,
            "conversation": [conversation],
            "dead_letter": [documents.dead["task_id"]],
            "document": [shared["document_id"], private["document_id"], documents.broken["document_id"]],
            "document_place": [[created, shared["document_id"]]],
            "email": emails,
            "filename": [owner.get(f"/api/v1/documents/{shared['document_id']}").json()["filename"]],
            "idempotency_key": keys,
            "memory": [people["owner"].memory],
            "message": [message],
            "refresh_token": [forged_refresh_token(made["id"], people["owner"].id)],
            "tag": owner.get(f"/api/v1/documents/{shared['document_id']}").json()["tags"],
            "task": [item["task_id"] for item in (shared, private, documents.broken, documents.dead)],
            "tenant": [made["id"]],
            "upload": [unfinished],
            "user": [people["member"].id, people["owner"].id],
        },
        private={
            **places,
            "batch": [batch],
            "content": documents.hidden_texts,
            "conversation": [conversation],
            "document": [private["document_id"]],
            "document_place": [[created, private["document_id"]]],
            "filename": [owner.get(f"/api/v1/documents/{private['document_id']}").json()["filename"]],
            "idempotency_key": keys,
            "memory": [people["owner"].memory],
            "message": [message],
            "task": [private["task_id"]],
            "upload": [unfinished],
        },
    )


def _batch(owner: httpx.Client, mark: str) -> str:
    """Of one file, which everyone may see, and at its end."""
    files = [("file", (f"batched-{mark}.txt", f"The keeper of lighthouse {mark} counts boats.".encode()))]
    batch = _done(owner.post("/api/v1/batches", files=files))
    assert finished(owner, batch["items"][0]["task_id"])["status"] == "succeeded"
    return batch["id"]


def _begun_upload(owner: httpx.Client) -> str:
    """Four of ten bytes."""
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": "10",
        "Upload-Metadata": f"filename {base64.b64encode(b'begun.txt').decode()}",
        "Content-Type": "application/offset+octet-stream",
    }
    answer = owner.post("/api/v1/uploads", content=b"four", headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"].rpartition("/")[2]


def _signed_in(visitor: httpx.Client, user: str, role: str, mark: str) -> Person:
    email = f"{role}-{mark}@world.example"
    pair = _done(visitor.post("/api/v1/auth/token", json={"email": email, "password": PASSWORD}))
    headers = {"Authorization": f"Bearer {pair['access_token']}"}
    conversation = _done(visitor.post("/api/v1/conversations", json={"title": f"{role} {mark}"}, headers=headers))["id"]
    path = f"/api/v1/conversations/{conversation}/messages"
    answer = _done(visitor.post(path, json={"content": "Who counts the ships?"}, headers=headers))
    _done(visitor.post(f"{path}/{answer['id']}/feedback", json={"rating": 1}, headers=headers))
    _done(visitor.post(path, json={"content": f"My ship is called {mark} {role}."}, headers=headers))
    _done(visitor.put("/api/v1/memory/settings", json={"across_conversations": True}, headers=headers))
    memory = _remembered(visitor, conversation, headers)
    return Person(user, email, role, pair["access_token"], pair["refresh_token"], conversation, answer["id"], memory)


def _remembered(visitor: httpx.Client, conversation: str, headers: dict[str, str]) -> str:
    """The id of the first memory that the worker finds."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        items = _done(visitor.get(f"/api/v1/conversations/{conversation}/memory", headers=headers))["items"]
        if items:
            return items[0]["id"]
        time.sleep(0.1)
    raise TimeoutError(conversation)


def _done(answer: httpx.Response) -> Any:
    assert answer.is_success, answer.text
    return answer.json() if answer.content else None


async def _bury(product: Product, task_id: str) -> None:
    """Makes a failed task a dead letter, with what relays and workers would write of its tenant in the course of hours.

    No file leads there quickly: only an error that goes on through all tries.
    """
    conn = await asyncpg.connect(_secret_dsn(product))
    try:
        async with conn.transaction():
            for change in (
                "status = 'queued', due_at = 'infinity'",
                "status = 'running', lease_until = 'infinity'",
                "status = 'dead', stage = 'dead', lease_until = null",
            ):
                assert await conn.execute(f"update tasks set {change} where id = $1", UUID(task_id)) == "UPDATE 1"
            for row in (
                "alerts (tenant_id, name, severity) select tenant_id, 'probe.alert', 'warning'",
                "object_sweeps (tenant_id, finished_at) select tenant_id, now()",
                "shadow_comparisons (tenant_id, content_id, version, against, seconds)"
                " select tenant_id, content_id, '2', '1', 1",
            ):
                made = await conn.execute(f"insert into {row} from tasks where id = $1", UUID(task_id))
                assert made == "INSERT 0 1"
    finally:
        await conn.close()


def _secret_dsn(product: Product) -> str:
    dsn = httpx.URL(product.up["postgres_dsn"])
    password = product_secrets(product)["database_passwords"][OWNER]
    return str(dsn.copy_with(username=OWNER, password=password))


def product_secrets(product: Product) -> dict[str, Any]:
    """What the first start generated."""
    return msgspec.json.decode((product.home / "secrets.json").read_bytes())


def expired_token(product: Product, world: World) -> str:
    """An access token of the owner that was good until an hour ago."""
    secret = product_secrets(product)["jwt_secret"]
    claims = jwt.decode(world.people["owner"].token, options={"verify_signature": False})
    hour_ago = int(time.time()) - 3600
    return jwt.encode({**claims, "iat": hour_ago - 900, "nbf": hour_ago - 900, "exp": hour_ago}, secret, "HS256")


def forged_refresh_token(tenant: str, user: str) -> str:
    """A refresh token that names a tenant and a user, with a secret that nobody has issued."""
    raw = UUID(tenant).bytes + UUID(user).bytes + secrets.token_bytes(32)
    return "dhr_" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def rows_of(dsn: str, tenant: str) -> dict[str, list[str]]:
    """Every row that a tenant has, by table, read past row-level security."""
    conn = await asyncpg.connect(dsn)
    try:
        tables = await conn.fetch(
            "select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'"
            " where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition"
        )
        return {
            name: [
                row[0]
                for row in await conn.fetch(
                    f"select t::text from {name} t where tenant_id = $1 order by 1", UUID(tenant)
                )
            ]
            for (name,) in tables
        }
    finally:
        await conn.close()
