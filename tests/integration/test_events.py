"""Following events over WebSocket and SSE: who is told what, from where, and how it ends."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest
from redis.asyncio import Redis

from internal.entities.events import AlertRaised, DocumentReady
from internal.entities.tasks import Lease
from internal.repositories.broadcasts import Megaphone
from pkg.ctxutil import Context, Role
from tests.integration.api import JWT_SECRET, Running, add_member, is_problem, served, served_on, settings_for, sign_in
from tests.integration.following import STREAM, closed, flood, following, silent, socket_of, streaming
from tests.ledger import Ledger, eventually, flush, open_ledger
from tests.servers import Database, Servers

REVOKED_WITHIN = 5.0


@pytest.fixture
async def api(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Running]:
    async with served_on(servers, database, tmp_path, rate_per_minute=100_000, streams_per_key=4) as running:
        yield running


@pytest.fixture
async def ledger(servers: Servers, database: Database) -> AsyncGenerator[Ledger]:
    async with open_ledger(database, servers.redis_url) as found, found.relay():
        yield found


class People:
    """A tenant with an owner and a colleague, both signed in."""

    def __init__(self, api: Running, made: dict[str, Any], colleague: str, colleague_id: str) -> None:
        self.api = api
        self.id: str = made["id"]
        self.key: str = made["api_key"]
        self.colleague = colleague
        self.colleague_id = colleague_id
        self.owner = Context(
            tenant_id=UUID(made["id"]), user_id=UUID(made["owner"]["id"]), role=Role.OWNER, request_id="", trace_id=""
        )

    @classmethod
    async def of(cls, api: Running, name: str) -> "People":
        made = await api.new_tenant(name)
        member = await add_member(api, made["api_key"], f"colleague@{name}.example", "member")
        token = (await sign_in(api, f"colleague@{name}.example")).json()["access_token"]
        return cls(api, made, token, member["id"])

    async def upload(self, text: str, **fields: str) -> dict[str, Any]:
        async with self.api.client(self.key) as client:
            answer = await client.post("/api/v1/documents", files={"file": (f"{text}.txt", text.encode())}, data=fields)
        assert answer.status_code == 202, answer.text
        return answer.json()


async def test_an_upload_is_told_and_a_deletion(api: Running, ledger: Ledger) -> None:
    people = await People.of(api, "told")
    async with (
        following(api.url, people.key) as socket,
        api.client(people.key) as client,
        streaming(client) as stream,
    ):
        assert (socket.first["type"], socket.first["id"]) == ("ready", 0)
        sent = await people.upload("told")
        gone = (await client.delete(f"/api/v1/documents/{sent['document_id']}")).json()
        seen = await socket.take(3)
        assert await stream.take(3) == seen
    assert [(item["type"], item["id"]) for item in seen] == [
        ("task.queued", 1),
        ("task.cancelled", 2),
        ("document.deleted", 3),
    ]
    assert seen[0]["data"] == {
        "task_id": sent["task_id"],
        "kind": "ingest_content",
        "status": "queued",
        "document_id": sent["document_id"],
    }
    assert seen[1]["data"]["status"] == "cancelled"
    assert seen[1]["data"]["error"] is None
    assert seen[2]["data"] == {"document_id": sent["document_id"], "task_id": gone["id"]}


@pytest.mark.parametrize("path", ["tasks/{id}/retry", "tasks/retry"])
async def test_a_task_that_is_tried_anew_is_told_to_wait_again(api: Running, ledger: Ledger, path: str) -> None:
    people = await People.of(api, "anew")
    sent = await people.upload("anew")
    async with following(api.url, people.key) as socket, api.client(people.key) as client:
        await client.post(f"/api/v1/tasks/{sent['task_id']}/cancel")
        order = {} if "{id}" in path else {"json": {"ids": [sent["task_id"]], "status": "cancelled"}}
        answer = await client.post(f"/api/v1/{path.format(id=sent['task_id'])}", **order)
        assert answer.status_code == 202, answer.text
        seen = await socket.take(3 if socket.first["id"] == 0 else 2)
    assert [item["type"] for item in seen][-2:] == ["task.cancelled", "task.queued"]
    assert seen[-1]["data"] == {
        "task_id": sent["task_id"],
        "kind": "ingest_content",
        "status": "queued",
        "document_id": sent["document_id"],
    }


async def test_a_failure_tells_its_code_and_message(api: Running, ledger: Ledger) -> None:
    people = await People.of(api, "failure")

    async def fail(ctx: Context, lease: Lease) -> dict[str, Any]:
        raise ValueError("a secret of the library")

    [task] = await ledger.add(people.owner, "fail")
    async with following(api.url, people.key) as reader, ledger.worker(ledger.jobs(fail=fail)):
        found = await reader.next()
    assert found["type"] == "task.dead"
    assert found["data"]["task_id"] == str(task.id)
    assert found["data"]["error"]["code"] == "internal.error"
    assert "ValueError" in found["data"]["error"]["message"]
    assert "secret" not in str(found)


async def test_progress_comes_now_and_then_and_the_end_for_certain(api: Running, ledger: Ledger) -> None:
    people = await People.of(api, "progress")
    megaphone = Megaphone(ledger.redis_url)
    reported = 0

    async def work(ctx: Context, lease: Lease) -> dict[str, Any]:
        nonlocal reported
        for number in range(60):
            async with ledger.worker_store.tenant(ctx) as tx:
                await tx.tasks.progress(lease, "embedding", number / 60)
            await megaphone.task_moved(ctx, lease)
            reported += 1
            await asyncio.sleep(0.03)
        return {}

    async with following(api.url, people.key) as reader, following(api.url, people.colleague) as colleague:
        [task] = await ledger.add(people.owner, "work")
        await flood(ledger, people.id, 1)  # the colleague's only message: the task has no document
        started = time.monotonic()
        async with ledger.worker(ledger.jobs(work=work)):
            seen = await reader.until("task.succeeded")
        took = time.monotonic() - started
        assert [(await colleague.next(progress=True))["type"]] == ["alert"]
    await megaphone.close()
    told = [item for item in seen if item["type"] == "task.progress"]
    assert reported == 60
    assert 1 <= len(told) <= 2 * took + 1
    assert told[0]["data"]["task_id"] == str(task.id)
    assert told[0]["data"]["stage"] == "embedding"
    assert all("id" not in item for item in told)
    steps = [item["data"]["progress"] for item in told]
    assert steps == sorted(steps)


async def test_a_private_document_is_told_to_its_owner_alone(api: Running, ledger: Ledger) -> None:
    people, strangers = await People.of(api, "private"), await People.of(api, "strangers")
    async with AsyncExitStack() as stack:
        owner, colleague, stranger = [
            await stack.enter_async_context(following(api.url, key))
            for key in (people.key, people.colleague, strangers.key)
        ]
        hidden = await people.upload("hidden", visibility="private")
        async with ledger.worker_store.tenant(people.owner) as tx:
            await tx.outbox.add(DocumentReady(document_id=UUID(hidden["document_id"]), chunk_count=1))
        seen = await owner.take(2)
        async with api.client(people.key) as client:
            await client.delete(f"/api/v1/documents/{hidden['document_id']}")
        shared = await people.upload("shared")
        await strangers.upload("elsewhere")
        seen += await owner.take(3)
        assert [item["type"] for item in seen] == [
            *("task.queued", "document.ready", "task.cancelled", "document.deleted", "task.queued")
        ]
        assert [item["data"]["document_id"] for item in seen] == [hidden["document_id"]] * 4 + [shared["document_id"]]
        # What comes next to the others is what came last.
        assert (await colleague.next())["data"]["document_id"] == shared["document_id"]
        foreign = await stranger.next()
        assert foreign["id"] == 1
        assert not {people.id, hidden["document_id"], shared["document_id"]} & set(map(str, foreign["data"].values()))
    async with following(api.url, people.colleague, last_event_id=0) as again:
        replayed = await again.next()
        assert (replayed["type"], replayed["data"]["document_id"]) == ("task.queued", shared["document_id"])


async def test_a_document_that_was_made_private_is_told_no_more(api: Running, ledger: Ledger) -> None:
    people = await People.of(api, "later")
    sent = await people.upload("later")
    await eventually(numbered(ledger, people, 1))
    async with api.client(people.key) as client:
        await client.patch(f"/api/v1/documents/{sent['document_id']}", json={"visibility": "private"})
    await flood(ledger, people.id, 1)
    async with following(api.url, people.colleague, last_event_id=0) as colleague:
        assert (await colleague.next())["type"] == "alert"
    async with following(api.url, people.key, last_event_id=0) as owner:
        assert (await owner.next())["data"]["document_id"] == sent["document_id"]


def numbered(ledger: Ledger, people: People, count: int) -> Any:
    async def there() -> bool:
        query = "select count(*) from outbox where tenant_id = $1 and position is not null"
        return await ledger.inspector.fetchval(query, people.owner.tenant_id) >= count

    return there


async def test_an_alert_reaches_everyone_of_its_tenant(api: Running, ledger: Ledger) -> None:
    people, strangers = await People.of(api, "alert"), await People.of(api, "quiet")
    alert = AlertRaised(name="queue.stuck", severity="critical", detail="Nothing has moved for a minute.")
    async with (
        following(api.url, people.key) as owner,
        following(api.url, people.colleague) as colleague,
        following(api.url, strangers.key) as stranger,
    ):
        async with ledger.app.tenant(people.owner) as tx:
            await tx.outbox.add(alert)
        found = await owner.next()
        assert await colleague.next() == found
        await strangers.upload("mine")
        assert (await stranger.next())["type"] == "task.queued"
    assert found["type"] == "alert"
    assert found["data"] == {
        "name": alert.name,
        "severity": alert.severity,
        "detail": alert.detail,
        "active": True,
        "document_id": None,
    }


async def test_a_reader_goes_on_where_it_left_while_events_pour_in(api: Running, ledger: Ledger) -> None:
    """Connects again and again, by both ways, in the middle of a burst: each event once, in order."""
    people = await People.of(api, "resume")
    total, seen = 2000, list[int]()

    async def pour() -> None:
        for _ in range(total // 50):
            await flood(ledger, people.id, 50, length=10)
            await asyncio.sleep(0.05)

    pouring = asyncio.create_task(pour())
    position, rounds = 0, 0
    while position < total:
        rounds += 1
        if rounds % 2:
            async with following(api.url, people.key, last_event_id=position) as reader:
                seen += [item["id"] for item in await reader.take(min(97, total - position))]
        else:
            async with api.client(people.key) as client, streaming(client, position) as reader:
                seen += [item["id"] for item in await reader.take(min(97, total - position))]
        position = seen[-1]
    await pouring
    assert rounds > 10
    assert seen == list(range(1, total + 1))


async def test_what_can_not_be_read_any_more_is_said(api: Running, ledger: Ledger) -> None:
    people = await People.of(api, "reset")
    await flood(ledger, people.id, 10)
    await ledger.inspector.execute(
        "update outbox set published_at = now() - interval '7 days' where tenant_id = $1 and position <= 5",
        people.owner.tenant_id,
    )
    for last, first in ((4, ("reset", 10)), (11, ("reset", 10)), (5, ("ready", 5)), (10, ("ready", 10))):
        async with following(api.url, people.key, last_event_id=last) as reader:
            assert (reader.first["type"], reader.first["id"]) == first
            if last == 5:
                assert [item["id"] for item in await reader.take(5)] == [6, 7, 8, 9, 10]
    await ledger.inspector.execute("update outbox set published_at = now() - interval '7 days'")
    async with following(api.url, people.key, last_event_id=10) as reader:
        assert reader.first["type"] == "ready"
        await flood(ledger, people.id, 1)
        assert (await reader.next())["id"] == 11


async def test_a_wiped_redis_and_a_cut_line_lose_nothing(api: Running, ledger: Ledger) -> None:
    people = await People.of(api, "wiped")
    redis = Redis.from_url(ledger.redis_url)
    async with following(api.url, people.key) as reader:
        for number in range(1, 5):
            await flush(ledger.redis_url)
            if number % 2:
                await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await people.upload(f"wiped {number}")
            assert (await reader.next())["id"] == number
    await redis.aclose()


async def test_without_redis_events_come_from_the_database(
    ledger: Ledger, servers: Servers, database: Database, tmp_path: Path
) -> None:
    async with served(settings_for(database, "redis://127.0.0.1:9", tmp_path)) as alone:
        people = await People.of(alone, "alone")
        async with following(alone.url, people.key) as reader:
            await people.upload("alone")
            assert (await reader.next())["type"] == "task.queued"


async def test_whoever_loses_access_is_out_within_five_seconds(api: Running, ledger: Ledger) -> None:
    people = await People.of(api, "revoked")
    async with api.client(people.key) as owner:
        key = (await owner.post("/api/v1/api-keys", json={"name": "second", "role": "viewer"})).json()
        removed = await add_member(api, people.key, "removed@revoked.example", "member")
        leaver = (await sign_in(api, "removed@revoked.example")).json()
        await add_member(api, people.key, "out@revoked.example", "member")
        signed_out = (await sign_in(api, "out@revoked.example")).json()
        claims = jwt.decode(signed_out["access_token"], options={"verify_signature": False})
        ending = jwt.encode({**claims, "exp": int(time.time()) - 2}, JWT_SECRET, "HS256")  # within the leeway
        credentials = {
            "revoked key": key["key"],
            "removed member": leaver["access_token"],
            "ended sign-in": signed_out["access_token"],
            "changed role": people.colleague,
            "expired token": ending,
        }
        async with AsyncExitStack() as stack:
            sockets = [
                await stack.enter_async_context(socket_of(api.url, credential)) for credential in credentials.values()
            ]
            client = await stack.enter_async_context(api.client(key["key"]))
            stream = await stack.enter_async_context(streaming(client))
            kept = await stack.enter_async_context(following(api.url, people.key))
            started = time.monotonic()
            member = f"/api/v1/members/{people.colleague_id}"
            answers = [
                await owner.delete(f"/api/v1/api-keys/{key['id']}"),
                await owner.delete(f"/api/v1/members/{removed['id']}"),
                await owner.patch(member, json={"role": "viewer"}),
                await owner.post("/api/v1/auth/sign-out", json={"refresh_token": signed_out["refresh_token"]}),
            ]
            assert all(answer.is_success for answer in answers), [answer.text for answer in answers]
            ends = await asyncio.gather(*map(closed, sockets))
            last = await stream.next()
            assert time.monotonic() - started < REVOKED_WITHIN + 5  # the token's leeway of 5 s counts too
            assert {name: end.code for name, end in zip(credentials, ends, strict=True)} == dict.fromkeys(
                credentials, 4401
            )
            assert all(end.reason.startswith("auth.invalid_token: ") for end in ends)
            assert (last["type"], last["data"]["status"]) == ("event: error", 401)
            await people.upload("still there")
            assert (await kept.next())["type"] == "task.queued"


async def test_refusals_are_close_codes_and_problems(api: Running, ledger: Ledger) -> None:
    people = await People.of(api, "refused")
    for key, last, code in (("dh_nobody", None, 4401), (people.key, -1, 4400), (people.key, 2**63, 4400)):
        async with socket_of(api.url, key, last) as refused:
            assert refused.subprotocol == "bearer"
            assert (await closed(refused)).code == code
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(following(api.url, people.key))
        async with socket_of(api.url, people.key) as fifth:
            end = await closed(fifth)
            assert (end.code, end.reason.partition(":")[0]) == (4429, "events.too_many_readers")
        async with api.client(people.key) as client:
            answer = await client.get(STREAM)
            is_problem(answer, 429, "events.too_many_readers")
            assert int(answer.headers["retry-after"]) > 0
            is_problem(await client.get(STREAM, headers={"Last-Event-ID": "x"}), 400, "request.invalid")
            is_problem(await client.get(STREAM, params={"token": "x"}), 400, "request.invalid")
        async with following(api.url, people.colleague) as other:
            assert other.first["type"] == "ready"
    async with api.client() as nobody:
        is_problem(await nobody.get(STREAM), 401, "auth.missing_token")
        metrics = (await nobody.get("/metrics")).text
    assert 'http_requests_total{method="WS",route="/api/v1/events",status="4429"} 1.0' in metrics


async def test_what_a_client_says_is_passed_over_and_must_be_short(api: Running, ledger: Ledger) -> None:
    people = await People.of(api, "talk")
    async with socket_of(api.url, people.key) as talker:
        for _ in range(20):
            await talker.send("ping")
        assert json.loads(await talker.recv())["type"] == "ready"  # what happens before that isn't told
        await flood(ledger, people.id, 1)
        assert json.loads(await talker.recv())["type"] == "alert"
    async with socket_of(api.url, people.key) as talker:
        await talker.send("x" * 2000)
        assert (await closed(talker)).code == 1009


async def test_readers_that_do_not_read_are_left_behind_and_hold_up_nobody(
    servers: Servers, database: Database, ledger: Ledger, tmp_path: Path
) -> None:
    async with served_on(servers, database, tmp_path, rate_per_minute=100_000) as api:
        people = await People.of(api, "silent")
        events = api.services.api.events
        deaf = [await silent(api.url, people.key) for _ in range(25)]
        deaf += [await silent(api.url, people.key, path=STREAM) for _ in range(24)]

        async def all_there() -> bool:
            return events.readers == len(deaf) + 1

        async with following(api.url, people.key) as reader:
            await eventually(all_there)
            for _ in range(8):
                await flood(ledger, people.id, 500)
            assert [item["id"] for item in await reader.take(4000)] == list(range(1, 4001))
            kept = [item for item in events._readers if item.room < 1000]
            assert sum(1000 - item.room for item in kept) <= 1000, "what waits for them was not dropped"
            for made in deaf:
                made.close()
