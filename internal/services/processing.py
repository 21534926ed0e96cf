"""Versions of the processing: which there are, and going from one to another, forwards and back.

A task reads by the version that is current when it begins. Whatever it publishes takes the tenant's lock of statistics
first, and so does a switch, so that each sees what the other has done: see `IngestService`.
"""

import hashlib
from itertools import accumulate
from typing import Any
from uuid import UUID

from internal.entities.processing import Processing, ProcessingState, Switch
from internal.entities.search import Space
from internal.entities.tasks import INGEST_VERSION, Lease, NewTask, Queue, TaskKind
from internal.repositories.store import Store, Tx
from internal.services import chunking
from internal.services.purge import remove_generation
from pkg import failpoints, logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

PROCESSINGS = {
    item.version: item
    for item in (
        Processing(version="1", target_tokens=chunking.TARGET_TOKENS, overlap_tokens=chunking.OVERLAP_TOKENS),
        # Half as long: passages that say less beside what was asked for.
        Processing(version="2", target_tokens=240, overlap_tokens=24),
    )
}
"""What these workers can read by. A change of parsing, cutting or analysis is a new version, never a changed one."""

SLICE, PASSAGES = 500, 2000
"""Contents a transaction at most, and passages of both readings: an upload's publication waits for one of these, about
a second. Counting terms takes nearly all of it, and the fewer transactions count a common term, the less."""

REREAD = 100
"""Contents whose reading is queued at a time."""

WAITING = 200
"""Readings of one tenant that wait at a time, far below what its people may have waiting."""

GENERATIONS = 50


def processing_of(version: str) -> Processing:
    """Raises MODEL_UNAVAILABLE, which holds the task for others, for a version that these workers don't know."""
    found = PROCESSINGS.get(version)
    if found is None:
        raise AppError(
            Code.MODEL_UNAVAILABLE, f"The task waits for a worker that reads by version {version}.", retry_after=5
        )
    return found


class ProcessingService:
    """The jobs that follow when an operator takes a version over, or goes back. One tenant each."""

    def __init__(self, store: Store, space: Space) -> None:
        self._store = store
        self._space = space
        self._log = logger.get("processing")

    async def switch_processing(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `switch_processing`: whatever the current version has read already answers from now on.

        Each content goes from one whole reading to another at once. The rest is read in the background, and what
        nobody will go back to is removed: tasks of their own.
        """
        count = 0
        while True:
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                await tx.lexicon.touch()
                state = await tx.processing.state()
                switches = few(await tx.processing.switchable(state.current, self._space.id, SLICE))
                if not switches:
                    await tx.tasks.add_hidden(following(TaskKind.REREAD_CONTENTS))
                    await tx.tasks.add_hidden(following(TaskKind.PURGE_GENERATIONS))
                    break
                await _switch(tx, switches, state)
            count += len(switches)
            await failpoints.hit("processing.after_switch")
        self._log.info("contents answer by another version", version=state.current, contents=count)
        return {"version": state.current, "switched": count}

    async def reread_contents(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `reread_contents`: has read by the current version whatever another one's reading answers for.

        A few at a time; while those wait, the task is held (QUEUE_FULL), and goes on behind them.
        """
        while True:
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                if await tx.room.unfinished_of_user(Queue.LEARNING, WAITING) >= WAITING:
                    raise AppError(Code.QUEUE_FULL, "Earlier readings are waited for.", retry_after=5)
                after = UUID((await tx.tasks.payload(lease.task.id)).get("after", str(UUID(int=0))))
                version = (await tx.processing.state()).current
                found = await tx.processing.unread(version, self._space.id, after=after, limit=REREAD)
                if not found:
                    return {"version": version}
                for content in found:
                    await tx.tasks.add_hidden(rereading(content))
                await tx.processing.come_to(lease.task.id, found[-1])

    async def purge_generations(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `purge_generations`: removes readings that were replaced, or given up, and whose time is over."""
        count = 0
        while True:
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                await tx.lexicon.touch()
                await tx.processing.expire()
                found = await tx.processing.retired(GENERATIONS)
            for generation in found:
                await remove_generation(self._store, ctx, lease, generation)
            count += len(found)
            if not found:
                return {"removed": count}


def in_nobodys_name(ctx: Context) -> bool:
    """Whether a task is the operator's own: a tenant's id stands where others have the user who asked for it."""
    return ctx.user_id == ctx.tenant_id


def mirrored(task_id: UUID, share: float) -> bool:
    """Whether a task is one of the share (0 to 1) whose file is read once more: the same answer for ever."""
    first = int.from_bytes(hashlib.sha256(task_id.bytes).digest()[:4])
    return first < share * 2**32


def rereading(content_id: UUID) -> NewTask:
    """The task that reads a content once more, by the version that is current then."""
    return NewTask(kind=TaskKind.INGEST_CONTENT, version=INGEST_VERSION, queue=Queue.LEARNING, content_id=content_id)


def shadowing(content_id: UUID, version: str) -> NewTask:
    """The task that reads a content by a version that is tried."""
    return NewTask(
        kind=TaskKind.SHADOW_CONTENT,
        version=1,
        queue=Queue.LEARNING,
        content_id=content_id,
        payload={"version": version},
    )


def following(kind: TaskKind) -> NewTask:
    """Work that comes of a switch, in the tenant's name, which waits for whatever people asked for."""
    return NewTask(kind=kind, version=1, queue=Queue.LEARNING)


def few(found: list[Switch]) -> list[Switch]:
    """The first of them that have PASSAGES passages together; one, however many it has."""
    count = sum(total <= PASSAGES for total in accumulate(item.chunks for item in found))
    return found[: max(1, count)]


async def _switch(tx: Tx, switches: list[Switch], state: ProcessingState) -> None:
    """`state` is the one by which the switches were chosen: what an order changes meanwhile is another switch's."""
    olds, news = [item.old for item in switches], [item.new for item in switches]
    await tx.lexicon.replace(olds, news)
    await tx.processing.switch(switches)
    await tx.generations.replace(olds, state)
