"""`dreamhub doctor` against servers that are well, ill, and absent."""

import re
from pathlib import Path

import asyncpg
import msgspec
import numpy as np
import pytest

from dreamhub.doctor import Finding, Level, examine
from internal.entities.ids import new_id
from internal.repositories.search_function import EXACT_CHUNKS
from internal.repositories.spaces import create_space
from tests.fakes.openai_server import running_fake
from tests.library import SPACE, Library
from tests.servers import Database

DIMENSION = 32


async def report(home: Path) -> dict[str, Finding]:
    return {finding.subject: finding async for finding in examine(home)}


@pytest.fixture
def well(database: Database, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB__DSN", database.app)
    monkeypatch.setenv("REDIS__URL", redis_url)
    monkeypatch.setenv("BLOBS__URL", (tmp_path / "blobs").as_uri())


@pytest.mark.usefixtures("well")
async def test_servers_that_are_well(tmp_path: Path) -> None:
    found = await report(tmp_path)
    for subject in ("PostgreSQL", "pgvector", "Login role", "Migrations", "Redis", "Objects", "libmagic"):
        assert found[subject].level is Level.OK, found[subject]


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize("role", ["superuser", "backup"])
async def test_a_login_past_row_level_security_fails(
    role: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB__DSN", getattr(database, role))
    found = await report(tmp_path)
    assert found["Login role"].level is Level.FAIL
    assert found["Login role"].remedy == "let DB__DSN log in as dreamhub_app"


@pytest.mark.usefixtures("well")
async def test_missing_migrations_fail(
    empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB__DSN", empty_database.app)
    found = await report(tmp_path)
    assert found["Migrations"].level is Level.FAIL
    assert found["Migrations"].remedy == "run `dreamhub migrate`"


async def test_servers_that_are_down_are_all_told_and_no_password_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("DB__DSN", "postgresql://someone:hidden@127.0.0.1:1/x"),
        ("REDIS__URL", "redis://:hidden@127.0.0.1:1/0"),
        ("BLOBS__URL", "file:///dev/null/blobs"),
        ("MODELS__URL", "http://127.0.0.1:1"),
        ("SCAN__CLAMD", "tcp://127.0.0.1:1"),
        ("AI__BASE_URL", "http://127.0.0.1:1/v1"),
    ):
        monkeypatch.setenv(name, value)
    found = await report(tmp_path)
    for subject in ("PostgreSQL", "Redis", "Objects", "Local models", "Virus scan", "Chat model"):
        assert found[subject].level is Level.FAIL, found[subject]
        assert found[subject].remedy
        assert "hidden" not in found[subject].text


async def test_the_embedding_model_is_asked_for_a_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await report(tmp_path))["Embeddings"].level is Level.OK
    async with running_fake(dimension=DIMENSION) as fake:
        monkeypatch.setenv("AI__BASE_URL", fake.base_url)
        monkeypatch.setenv("AI__EMBEDDING_MODEL", "fake-embedding")
        monkeypatch.setenv("AI__EMBEDDING_DIM", str(DIMENSION))
        assert (await report(tmp_path))["Embeddings"] == Finding(
            Level.OK, "Embeddings", f"fake-embedding, {DIMENSION} dimensions"
        )
        monkeypatch.setenv("AI__EMBEDDING_DIM", str(DIMENSION + 1))
        wrong = (await report(tmp_path))["Embeddings"]
    assert wrong.level is Level.FAIL
    assert f"sends {DIMENSION} dimensions where" in wrong.text
    assert "AI__EMBEDDING_DIM" in wrong.remedy


async def test_a_wrong_setting_ends_the_report_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB__POOL_MAXX", "3")
    found = await report(tmp_path)
    assert found["Settings"] == Finding(
        Level.FAIL, "Settings", "DB__POOL_MAXX is not a setting of DreamHub; did you mean DB__POOL_MAX?"
    )
    assert "PostgreSQL" not in found


@pytest.mark.usefixtures("well")
async def test_what_relays_and_sweeps_have_seen_is_told(database: Database, tmp_path: Path) -> None:
    found = await report(tmp_path)
    assert (found["Relay"].level, found["Relay"].text) == (Level.WARN, "none has looked yet")
    assert found["Lost objects"].level is Level.OK
    conn = await asyncpg.connect(database.superuser)
    try:
        await look(conn, seconds=1, alerts="{}")
        found = await report(tmp_path)
        assert (found["Relay"].level, found["Alerts"].level) == (Level.OK, Level.OK)
        await look(conn, seconds=61, alerts='{"outbox.backlog": 1}')
        tenant, content = new_id(), new_id()
        await conn.execute("insert into tenants (id, name) values ($1, 'secret')", tenant)
        await conn.execute(
            "insert into contents (tenant_id, id, sha256, size, media_type, source_type, blob_key, missing_at)"
            " values ($1, $2, decode(repeat('00', 32), 'hex'), 1, 'text/plain', 'document', 'x', now())",
            tenant,
            content,
        )
    finally:
        await conn.close()
    found = await report(tmp_path)
    assert found["Relay"].level is Level.FAIL
    assert (found["Alerts"].level, found["Alerts"].text) == (Level.WARN, "outbox.backlog")
    assert (found["Lost objects"].level, found["Lost objects"].text) == (Level.WARN, "stored files that are gone: 1")
    assert not {"secret", str(tenant), str(content)} & set(repr(found).split())


async def look(conn: asyncpg.Connection, *, seconds: float, alerts: str) -> None:
    """As a relay leaves it."""
    last = f'{{"queues": [], "events": 0, "oldest_event_seconds": 0, "dead": 0, "workers": 1, "alerts": {alerts}}}'
    await conn.execute(
        "update watch set state = jsonb_build_object('last', $1::jsonb),"
        " watched_at = now() - make_interval(secs => $2)",
        last,
        seconds,
    )


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize("storage", ["vector", "halfvec"])
async def test_the_index_is_tried_on_what_is_stored(
    storage: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AI__EMBEDDING_STORAGE", storage)
    assert "Vector index" not in await report(tmp_path), "the application's login sees no tenant's rows"
    monkeypatch.setenv("DB__OWNER_DSN", database.owner)
    small = (await report(tmp_path))["Vector index"]
    assert (small.level, "one by one" in small.text) == (Level.OK, True)
    library = await Library.open(database)
    space = await create_space(library.owner, msgspec.structs.replace(SPACE, id=0, half=storage == "halfvec"))
    assert space.storage == storage
    draw = np.random.default_rng(5)
    ctx = await library.tenant()
    vectors = draw.standard_normal((EXACT_CHUNKS + 200, SPACE.dim)).astype(np.float32)
    await library.add(ctx, [f"passage {number}" for number in range(len(vectors))], embeddings=vectors, space=space)
    async with library.worker.tenant(ctx) as tx:
        await tx.vectors.analyze(space)
    await library.close()
    found = (await report(tmp_path))["Vector index"]
    share = re.fullmatch(r"finds ([\d.]+)% of the ten nearest passages, 20 tries in 1 tenants", found.text)
    assert share is not None, found
    assert float(share[1]) > 80
