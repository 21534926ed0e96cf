"""The limit of a search without HTTP: asyncpg alone, its arguments at hand. `python -m tests.bench.raw FILE`.

FILE is JSON: dsn, statement, settings, dim, clients, seconds, and `arguments`, one list for each search; the third
argument is the vector. Prints one JSON object like tests.bench.load.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import numpy as np
import uvloop
from pgvector.asyncpg import register_vector

from tests.bench.load import Load, load_of


class Job(msgspec.Struct, frozen=True):
    """What to ask, of whom, and how long."""

    dsn: str
    statement: str
    settings: dict[str, str]
    clients: int
    seconds: float
    arguments: list[list[Any]]


async def run(job: Job) -> Load:
    """One connection for each client, never idle."""
    searches = [[UUID(row[0]), UUID(row[1]), np.array(row[2], np.float32), *row[3:]] for row in job.arguments]
    connections = [await connect(job) for _ in range(job.clients)]
    statements = [await connection.prepare(job.statement) for connection in connections]
    began = time.perf_counter()

    async def one(number: int) -> list[float]:
        taken: list[float] = []
        place = number * len(searches) // job.clients
        while (before := time.perf_counter()) < began + job.seconds:
            rows = await statements[number].fetch(*searches[place % len(searches)])
            assert rows
            taken.append(time.perf_counter() - before)
            place += 1
        return taken

    taken = await asyncio.gather(*(one(number) for number in range(job.clients)))
    seconds = time.perf_counter() - began
    for connection in connections:
        await connection.close()
    return load_of(seconds, [item for part in taken for item in part])


async def connect(job: Job) -> asyncpg.Connection:
    connection = await asyncpg.connect(job.dsn, server_settings=job.settings)
    await register_vector(connection)
    return connection


def main() -> None:
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    sys.stdout.write(msgspec.json.encode(uvloop.run(run(job))).decode() + "\n")


if __name__ == "__main__":
    main()
