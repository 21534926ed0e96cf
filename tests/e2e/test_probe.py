"""Two tenants, and two users of one tenant: a foreign id is answered exactly as one that never existed.

Generated from `/openapi.json` of the running product: every route, verb and place of an id, with every kind of
credential. A route with a parameter or field that tests/e2e/probe.py doesn't know makes this fail.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import httpx
import pytest

from internal.handlers.routes import ROUTES
from tests.e2e.probe import KINDS, Position, UncoveredError, comparable, positions, request, twin
from tests.e2e.product import Product
from tests.e2e.world import ROLES, World, build, expired_token, rows_of

UNLISTED = {"/openapi.json", "/docs"}
REFUSED = ("nobody", "platform", "expired", "garbled")
# Kinds of ids that name something in a path; on all of these a foreign one is not found.
NOT_FOUND = {401, 403, 404}


@pytest.fixture(scope="module")
def document(product: Product) -> dict[str, Any]:
    with product.client() as client:
        return client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def victim(product: Product) -> World:
    return build(product)


@pytest.fixture(scope="module")
def prober(product: Product) -> World:
    return build(product)


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


def clients(product: Product, credentials: Mapping[str, str]) -> dict[str, httpx.Client]:
    return {
        name: httpx.Client(
            base_url=product.up["url"],
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=60,
            trust_env=False,
        )
        for name, token in credentials.items()
    }


def probes(document: dict[str, Any], known: Mapping[str, list[Any]]) -> list[tuple[Position, list[Any]]]:
    """Each position with the values to put there; a position of an idempotency key gets a key of its own."""
    keys = iter(known["idempotency_key"])
    return [
        (item, [next(keys)] if item.kind == "idempotency_key" else known[item.kind])
        for item in positions(document)
        if item.kind in known
    ]


def differences(
    client: httpx.Client,
    position: Position,
    values: Iterable[Any],
    own: Mapping[str, Any],
    check: Callable[[int], bool],
) -> list[str]:
    """Foreign values that are answered otherwise than their twins, or with a status that `check` refuses."""
    found: list[str] = []
    for value in values:
        other = twin(value)
        # One before, so that what only the first request changes (a collection that is made) is made.
        request(client, position, twin(value), own)
        foreign = comparable(request(client, position, value, own), position, value)
        unknown = comparable(request(client, position, other, own), position, other)
        if foreign != unknown:
            found.append(f"{position} = {value!r}:\n  foreign {foreign}\n  unknown {unknown}")
        if not check(foreign[0]):
            found.append(f"{position} = {value!r}: answered {foreign[0]}")
    return found


def test_every_route_is_in_the_document(document):
    served = {path.replace(":str}", "}") for handler in ROUTES for path in handler.paths}
    assert served - set(document["paths"]) == UNLISTED


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
        assert {person.id for person in victim.people.values()} == members
        collections = {item["id"] for item in owner.get("/api/v1/collections").json()["items"]}
        assert set(victim.ids["collection"]) <= collections


def test_another_tenants_id_is_an_id_that_never_existed(
    product: Product, document, victim: World, prober: World, credentials
):
    dsn = product.up["postgres_dsn"]
    before = asyncio.run(rows_of(dsn, victim.tenant))
    assert len(before) - sum(map(bool, before.values())) <= 1, "tables where the victim has nothing"
    found: list[str] = []
    asked = 0
    for name, client in clients(product, credentials).items():
        role = name if name in ROLES else "owner"
        with client:
            for position, values in probes(document, victim.ids):
                if position.open and name != "nobody":
                    continue  # the credential isn't looked at
                if position.place == "header" and name == "key":
                    continue  # the owner's too, whose keys they are
                needs_platform = position.path == "/api/v1/tenants"

                def allowed(
                    status: int, *, name: str = name, position: Position = position, platform: bool = needs_platform
                ) -> bool:
                    if position.open:
                        return status < 500
                    if (name in REFUSED) != (platform and name == "platform"):
                        return status == 401 or platform
                    return status in NOT_FOUND if position.place == "path" else status < 500 and status != 429

                found += differences(client, position, values, prober.own(role), allowed)
                asked += 1
    assert asked > 300
    assert not found, report(found)
    assert asyncio.run(rows_of(dsn, victim.tenant)) == before


def test_another_users_private_id_is_an_id_that_never_existed(product: Product, document, victim: World):
    with product.client(victim.people["owner"].token) as owner:
        before = owners_view(owner, victim)
        found: list[str] = []
        for name, client in clients(product, {role: victim.people[role].token for role in ROLES[1:]}).items():
            with client:
                for position, values in probes(document, victim.private):
                    if position.open:
                        continue
                    own = victim.own(name)

                    def allowed(status: int, *, position: Position = position) -> bool:
                        return status in NOT_FOUND if position.place == "path" else status < 500 and status != 429

                    found += differences(client, position, values, own, allowed)
        assert not found, report(found)
        assert owners_view(owner, victim) == before


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
