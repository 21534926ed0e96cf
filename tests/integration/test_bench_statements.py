"""What the bench sends beside the product is what the product's function takes."""

import pytest

from tests.bench.http import FUNCTION
from tests.bench.search import PLAIN, UNBOUND
from tests.library import Library
from tests.servers import Servers, borrowed_database


@pytest.mark.parametrize("statement", [PLAIN, UNBOUND, FUNCTION], ids=["plain", "unbound", "function"])
async def test_bench_statement(servers: Servers, statement: str) -> None:
    async with borrowed_database(servers) as database:
        library = await Library.open(database)
        await library.owner.prepare(statement)
        await library.close()
