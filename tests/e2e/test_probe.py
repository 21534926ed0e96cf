"""Two tenants, and two users of one tenant: a foreign id is answered exactly as one that never existed.

Generated from `/openapi.json` of the running product: every route, verb and place of an id, with every kind of
credential. A route with a parameter or field that tests/e2e/probe.py doesn't know makes this fail.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest

from internal.handlers.routes import ROUTES
from tests.e2e.following import SOCKET, WAYS, Follow, told
from tests.e2e.probe import KINDS, Position, UncoveredError, comparable, positions, request, twin
from tests.e2e.product import Product, finished, upload
from tests.e2e.world import ROLES, World, build, expired_token, rows_of

UNLISTED = {"/openapi.json", "/docs"}
PLATFORMS = {"/api/v1/tenants", "/api/v1/tenants/{tenant_id}"}
"""Who holds the platform token knows every tenant."""
REFUSED = ("nobody", "platform", "expired", "garbled")
SPENT = {"collection_name", "content", "email", "idempotency_key"}


@pytest.fixture(scope="module")
def document(product: Product) -> dict[str, Any]:
    with product.client() as client:
        return client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def victim(product: Product) -> World:
    return build(product)


@pytest.fixture(scope="module")
def prober(product: Product) -> World:
    return build(product, spares=False)


@pytest.fixture(scope="module")
def credentials(product: Product, prober: World) -> dict[str, str]:
    """Bearer tokens by what they are."""
    token = prober.people["owner"].token
    return {
        "key": prober.api_key,
        **{role: prober.people[role].token for role in ROLES},
        "nobody": "",
        "platform": product.up["platform_token"],
        "expired": expired_token(product, prober),
        "garbled": token[:-8] + "AAAAAAAA",
    }


def client_of(product: Product, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=product.up["url"], headers=headers, timeout=60, trust_env=False)


class Values:
    """What to put into positions. What a probe may bring into being in its own tenant is used for one probe only."""

    def __init__(self, known: Mapping[str, list[Any]]) -> None:
        self._known = known
        self._spares = {kind: iter(known[kind]) for kind in SPENT & known.keys()}

    def of(self, position: Position) -> list[Any]:
        spares = self._spares.get(position.kind)
        return self._known.get(position.kind, []) if spares is None else [next(spares)]

    def any(self, position: Position) -> list[Any]:
        """For a credential that gets nowhere."""
        return self._known[position.kind][:1]


def differences(
    client: httpx.Client, position: Position, value: Any, own: Mapping[str, Any], allowed: Callable[[int], bool]
) -> list[str]:
    """In what a foreign value is answered otherwise than its twin, or with a status that isn't allowed."""
    other = twin(value)
    foreign = comparable(request(client, position, value, own), position, value)
    unknown = comparable(request(client, position, other, own), position, other)
    found = [] if allowed(foreign[0]) else [f"{position} = {value!r}: answered {foreign}"]
    if foreign != unknown:
        found.append(f"{position} = {value!r}:\n  foreign {foreign}\n  unknown {unknown}")
    return found


def settled(client: httpx.Client, position: Position, value: Any, own: Mapping[str, Any]) -> None:
    """One request before those that are compared: what only the first changes is changed then."""
    request(client, position, twin(value), own)


def test_every_route_is_in_the_document(document):
    served = {path.replace(":str}", "}") for handler in ROUTES for path in handler.paths}
    assert served - set(document["paths"]) == UNLISTED | set(document["x-websockets"])
    assert set(document["x-websockets"]) == {SOCKET}


def test_every_route_is_covered(document):
    found = positions(document)
    assert {item.kind for item in found} >= set(KINDS.values())
    assert {item.place for item in found} == {"path", "query", "header", "body"}
    templates = {path for path in document["paths"] if "{" in path}
    assert {item.path for item in found if item.place == "path"} == templates


@pytest.mark.parametrize(
    "operation",
    [
        {"parameters": [{"name": "album_id", "in": "path", "schema": {}}]},
        {"parameters": [{"name": "X-Album", "in": "header", "schema": {}}]},
        {
            "requestBody": {
                "content": {
                    "application/json": {
                        "schema": {
                            "properties": {
                                "outer": {
                                    "oneOf": [
                                        {"type": "null"},
                                        {"items": {"properties": {"album": {"type": "string"}}}},
                                    ]
                                }
                            }
                        }
                    }
                }
            }
        },
    ],
)
def test_a_new_route_is_not_covered(document, operation):
    paths = {**document["paths"], "/api/v1/albums/{album_id}": {"put": {"security": [{}], **operation}}}
    with pytest.raises(UncoveredError, match=r"PUT /api/v1/albums/\{album_id\}: (album_id|X-Album|album)$"):
        positions({**document, "paths": paths})


def test_the_ids_exist(product: Product, document, victim: World):
    """Control: to their owner each of them is answered."""
    with product.client(victim.people["owner"].token) as owner:
        for position in positions(document):
            if position.method == "get" and position.place == "path":
                for value in victim.ids[position.kind]:
                    answer = request(owner, position, value, victim.own("owner"))
                    assert answer.status_code == 200, (str(position), value, answer.text)
        assert {item["id"] for item in owner.get("/api/v1/dead-letters").json()["items"]} == {victim.ids["task"][3]}
        keys = {item["id"] for item in owner.get("/api/v1/api-keys").json()["items"]}
        assert set(victim.ids["api_key"]) <= keys
        members = {item["id"] for item in owner.get("/api/v1/members").json()["items"]}
        assert {person.id for person in victim.people.values()} <= members
        collections = {item["id"] for item in owner.get("/api/v1/collections").json()["items"]}
        assert set(victim.ids["collection"]) <= collections


def test_a_credential_that_is_none_tells_nothing(product: Product, document, victim: World, prober: World, credentials):
    found: list[str] = []
    for name in REFUSED:
        with client_of(product, credentials[name]) as client:
            for position in positions(document):
                platform = position.path in PLATFORMS and name == "platform"
                if position.open or platform:
                    continue
                value = Values(victim.ids).any(position)[0]
                found += differences(client, position, value, prober.own("owner"), lambda status: status == 401)
    assert not found, report(found)


def test_another_tenants_id_is_an_id_that_never_existed(
    product: Product, document, victim: World, prober: World, credentials
):
    dsn = product.up["postgres_dsn"]
    before = asyncio.run(rows_of(dsn, victim.tenant))
    assert {name for name, rows in before.items() if not rows} == set(), "tables where the victim has nothing"
    values = Values(victim.ids)
    found: list[str] = []
    asked = 0
    for name in ("key", *ROLES):
        own = prober.own(name if name in ROLES else "owner")
        with client_of(product, credentials[name]) as client:
            for position in positions(document):
                if position.open or position.path in PLATFORMS:
                    continue
                for value in values.of(position):
                    settled(client, position, value, own)
                    found += differences(client, position, value, own, admitted(position))
                    asked += 1
    assert asked > 400
    assert not found, report(found)
    assert asyncio.run(rows_of(dsn, victim.tenant)) == before


def test_who_isnt_known_learns_nothing_of_a_tenant(
    product: Product, document, victim: World, prober: World, credentials
):
    """Signing in, refreshing, and the platform's making of a tenant."""
    values = Values({kind: found[::-1] for kind, found in victim.ids.items()})
    found: list[str] = []
    for position in positions(document):
        if position.open or position.path == "/api/v1/tenants":
            token = credentials["nobody" if position.open else "platform"]
            with client_of(product, token) as client:
                for value in values.of(position):
                    found += differences(client, position, value, prober.own("owner"), lambda status: status < 500)
    assert not found, report(found)


def test_another_users_private_id_is_an_id_that_never_existed(product: Product, document, victim: World):
    with product.client(victim.people["owner"].token) as owner:
        before = owners_view(owner, victim)
        values = Values(victim.private)
        found: list[str] = []
        for role in ROLES[1:]:
            own = victim.own(role)
            with client_of(product, victim.people[role].token) as client:
                for position in positions(document):
                    for value in [] if position.open else values.of(position):
                        settled(client, position, value, own)
                        found += differences(client, position, value, own, admitted(position))
        assert not found, report(found)
        assert owners_view(owner, victim) == before


@pytest.mark.parametrize("follow", WAYS)
def test_events_tell_of_ones_own_tenant_and_of_what_one_may_see(
    product: Product, victim: World, prober: World, follow: Follow
):
    """Everything that has happened, up to a marker that everyone may see."""
    for world, others in ((prober, victim), (victim, prober)):
        with product.client(world.api_key) as owner:
            marker = upload(owner, "marker.txt", f"A marker {world.tenant} {follow.__name__}".encode())["document_id"]
        foreign = [text for kind in ("document", "task", "tenant", "user") for text in others.ids[kind]]
        for role in ROLES:
            text = b"".join(told(follow, product, world.people[role].token, until=marker)).decode()
            assert not [known for known in foreign if known in text]
            assert world.ids["document"][0] in text
            private = [world.private[kind][0] in text for kind in ("document", "task")]
            assert private == [role == "owner"] * 2, role


def test_the_bytes_of_anothers_private_document_are_bytes_that_nobody_has(product: Product, victim: World):
    """From the upload to the end of the deletion: content is shared inside a tenant, and nobody is told."""
    text = victim.private["content"][-1]
    lives: list[list[Any]] = []
    with client_of(product, victim.people["member"].token) as member:
        for data in (text, twin(text)):
            first = upload(member, "mine.txt", data)
            read = finished(member, first["task_id"])
            path = f"/api/v1/documents/{first['document_id']}"
            seen = [first, read, member.get(path).json(), member.get(f"{path}/chunks").json()]
            purge = member.delete(path).json()
            seen += [purge, finished(member, purge["id"]), member.get(f"/api/v1/tasks/{first['task_id']}").json()]
            lives.append([without_own(item, data.decode()) for item in seen])
    for foreign, unknown in zip(*lives, strict=True):
        assert foreign == unknown


def without_own(value: Any, text: str) -> Any:
    """Without ids, times, and what only the bytes themselves decide."""
    if isinstance(value, list):
        return [without_own(item, text) for item in value]
    if isinstance(value, dict):
        own = {"sha256", "tokens"} | (
            {"status", "stage", "progress"} if value.get("status") in ("queued", "running") else set()
        )
        return {
            name: "MASKED" if name in own or name == "id" or name.endswith(("_id", "_at")) else without_own(item, text)
            for name, item in value.items()
        }
    return "TEXT" if value == text else value


def admitted(position: Position) -> Callable[[int], bool]:
    """Statuses that a foreign value may be answered with by who is let in."""
    if position.place == "path":
        return lambda status: status in (403, 404)
    return lambda status: status < 500 and status not in (401, 429)


def owners_view(owner: httpx.Client, world: World) -> list[Any]:
    """What the owner reads of their private things."""
    document, task = world.private["document"][0], world.private["task"][0]
    conversation = world.private["conversation"][0]
    paths = (
        f"/api/v1/documents/{document}",
        f"/api/v1/documents/{document}/chunks",
        f"/api/v1/documents/{document}/content",
        f"/api/v1/tasks/{task}",
        f"/api/v1/conversations/{conversation}",
        f"/api/v1/conversations/{conversation}/messages",
    )
    answers = [owner.get(path) for path in paths]
    assert [answer.status_code for answer in answers] == [200] * len(paths)
    return [answer.text for answer in answers]


def report(found: list[str]) -> str:
    return f"{len(found)} differences\n" + "\n".join(found[:20])
