"""The same home, started with another embedding model and then with the first one again."""

import asyncio
import tempfile
import time
import uuid
from pathlib import Path

import asyncpg

from tests.e2e.product import Product, finished, start, stop, upload, wait_until_up
from tests.fakes.openai_server import threaded_fake

TEXT = b"the observatory opens its dome at dusk"


def until_found_by_vector(product: Product, seconds: float = 60) -> None:
    with product.client() as client:
        until = time.monotonic() + seconds
        while True:
            answer = client.post("/api/v1/search", json={"query": "observatory dome", "mode": "vector"})
            if answer.status_code == 200 and answer.json()["items"]:
                return
            assert time.monotonic() < until, answer.text
            time.sleep(0.3)


def generations(product: Product) -> tuple[int, int]:
    """How many generations and chunks the first tenant has."""

    async def count() -> tuple[int, int]:
        conn = await asyncpg.connect(product.up["postgres_dsn"])
        tenant = uuid.UUID(product.up["tenant"]["id"])
        try:
            return (
                await conn.fetchval("select count(*) from generations where tenant_id = $1", tenant),
                await conn.fetchval("select count(*) from chunks where tenant_id = $1", tenant),
            )
        finally:
            await conn.close()

    return asyncio.run(count())


def test_documents_follow_the_model_there_and_back():
    with tempfile.TemporaryDirectory(prefix="dreamhub-e2e-") as folder, threaded_fake(dimension=48) as fake:
        Path(folder).chmod(0o711)
        home = Path(folder) / "home"
        other = {"AI__BASE_URL": fake.base_url, "AI__API_KEY": "sk-test-0123456789", "AI__EMBEDDING_MODEL": "emb-x",
                 "AI__EMBEDDING_DIM": "48"}  # fmt: skip
        for number, environment in enumerate(({}, other, {})):
            process = start(home, **environment)
            try:
                wait_until_up(home, process)
                product = Product(home, process)
                with product.client() as client:
                    if number == 0:
                        assert finished(client, upload(client, "dome.txt", TEXT)["task_id"])["status"] == "succeeded"
                until_found_by_vector(product)
                until = time.monotonic() + 20
                while generations(product) != (1, 1):
                    assert time.monotonic() < until, generations(product)
                    time.sleep(0.2)
            finally:
                assert stop(process) == 0
