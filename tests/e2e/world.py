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
from tests.e2e.product import Product, finished, upload

PASSWORD = "correct horse battery"
ROLES = ("owner", "admin", "member", "viewer")
KEYS = 30
"""Idempotency keys that the owner has used: one for each position, since the first probe uses it up."""
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


class World(msgspec.Struct, frozen=True):
    """A tenant. `ids` maps a kind of id to its values; of those in `private` only the owner may know."""

    tenant: str
    name: str
    api_key: str
    people: dict[str, Person]
    ids: dict[str, list[Any]]
    private: dict[str, list[Any]]

    def own(self, role: str) -> dict[str, Any]:
        """What a member of this role fills into the places that aren't probed."""
        person = self.people[role]
        first = {kind: values[0] for kind, values in self.ids.items()}
        return {**first, "conversation": person.conversation, "message": person.message}


def build(product: Product) -> World:
    """Makes a tenant with shared, private, broken and dead things, and waits until all its tasks have ended."""
    mark = secrets.token_hex(8)
    up = product.up
    with httpx.Client(base_url=up["url"], trust_env=False, timeout=60) as visitor:
        made = _done(
            visitor.post(
                "/api/v1/tenants",
                json={
                    "name": f"Tenant {mark}",
                    "owner_email": f"owner-{mark}@probe.example",
                    "owner_password": PASSWORD,
                },
                headers={"Authorization": f"Bearer {up['platform_token']}"},
            )
        )
        with product.client(made["api_key"]) as owner:
            return _filled(product, visitor, owner, made, mark)


def _filled(product: Product, visitor: httpx.Client, owner: httpx.Client, made: dict[str, Any], mark: str) -> World:
    keys = [f"idempotent-{number}-{mark}" for number in range(KEYS)]
    collection = _done(owner.post("/api/v1/collections", json={"name": f"Collection {mark}"}))
    texts = [f"The lighthouse keeper of {place} counts ships, says {mark}.".encode() for place in ("Sund", "Belt")]
    shared = upload(owner, f"shared-{mark}.txt", texts[0], tags=f"tag-{mark}", collection=f"Collection {mark}")
    private = upload(owner, f"private-{mark}.txt", texts[1], visibility="private")
    broken = upload(owner, f"broken-{mark}.pdf", BROKEN + mark.encode())
    dead = upload(owner, f"dead-{mark}.pdf", BROKEN + mark.encode()[::-1])
    for item, status in ((shared, "succeeded"), (private, "succeeded"), (broken, "failed"), (dead, "failed")):
        assert finished(owner, item["task_id"])["status"] == status
    asyncio.run(_bury(product, dead["task_id"]))
    extra = _done(owner.post("/api/v1/api-keys", json={"name": f"Key {mark}", "role": "viewer"}))
    for key in keys:
        _done(owner.post("/api/v1/search", json={"query": mark, "mode": "keyword"}, headers={"Idempotency-Key": key}))
    people = {"owner": _signed_in(visitor, made["owner"]["id"], "owner", mark)}
    for role in ROLES[1:]:
        body = {"email": f"{role}-{mark}@probe.example", "password": PASSWORD, "role": role}
        people[role] = _signed_in(visitor, _done(owner.post("/api/v1/members", json=body))["id"], role, mark)
    conversation, message = people["owner"].conversation, people["owner"].message
    document = owner.get(f"/api/v1/documents/{shared['document_id']}").json()
    hidden = owner.get(f"/api/v1/documents/{private['document_id']}").json()
    return World(
        tenant=made["id"],
        name=made["name"],
        api_key=made["api_key"],
        people=people,
        ids={
            "document": [shared["document_id"], private["document_id"], broken["document_id"]],
            "task": [shared["task_id"], private["task_id"], broken["task_id"], dead["task_id"]],
            "collection": [collection["id"]],
            "collection_name": [collection["name"]],
            "conversation": [conversation],
            "message": [message],
            "api_key": [extra["id"]],
            "user": [people["member"].id, people["owner"].id],
            "email": [people["admin"].email],  # not of those below, whom it would make known
            "tenant": [made["id"]],
            "tag": [f"tag-{mark}"],
            "filename": [f"shared-{mark}.txt"],
            "content": [texts[0]],
            "idempotency_key": keys,
            "refresh_token": [forged_refresh_token(made["id"], people["owner"].id)],
            "document_place": [[document["created_at"], document["id"]]],
            "conversation_place": [[document["created_at"], conversation]],
            "message_place": [[document["created_at"], message]],
        },
        private={
            "document": [private["document_id"]],
            "task": [private["task_id"]],
            "conversation": [conversation],
            "message": [message],
            "content": [texts[1]],
            "filename": [f"private-{mark}.txt"],
            "idempotency_key": keys,
            "document_place": [[hidden["created_at"], hidden["id"]]],
            "conversation_place": [[document["created_at"], conversation]],
            "message_place": [[document["created_at"], message]],
        },
    )


def _signed_in(visitor: httpx.Client, user: str, role: str, mark: str) -> Person:
    email = f"{role}-{mark}@probe.example"
    pair = _done(visitor.post("/api/v1/auth/token", json={"email": email, "password": PASSWORD}))
    headers = {"Authorization": f"Bearer {pair['access_token']}"}
    conversation = _done(visitor.post("/api/v1/conversations", json={"title": f"{role} {mark}"}, headers=headers))["id"]
    path = f"/api/v1/conversations/{conversation}/messages"
    answer = _done(visitor.post(path, json={"content": "Who counts the ships?"}, headers=headers))
    _done(visitor.post(f"{path}/{answer['id']}/feedback", json={"rating": 1}, headers=headers))
    return Person(user, email, role, pair["access_token"], pair["refresh_token"], conversation, answer["id"])


def _done(answer: httpx.Response) -> Any:
    assert answer.is_success, answer.text
    return answer.json() if answer.content else None


async def _bury(product: Product, task_id: str) -> None:
    """Makes a failed task a dead letter. No file leads there quickly: only an error that goes on through all tries."""
    conn = await asyncpg.connect(_secret_dsn(product))
    try:
        done = await conn.execute("update tasks set status = 'dead', stage = 'dead' where id = $1", UUID(task_id))
        assert done == "UPDATE 1"
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
