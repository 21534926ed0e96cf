"""Waits for many tasks with few requests."""

import asyncio
from collections.abc import Callable

from dreamhub.client.answers import FINISHED, Problem, Task, TaskPage
from dreamhub.client.api import Api
from dreamhub.client.errors import ApiError, ClientError

FEW = 3
"""So many tasks are asked for one by one, in one round; more of them by a page of the newest."""
PAGE = 100
SHORTEST, LONGEST = 0.3, 2.0

Listener = Callable[[Task], None]


class Waiting:
    """Run `run` beside the callers of `finished`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._waiters: dict[str, tuple[asyncio.Future[Task], Listener]] = {}
        self._seen: dict[str, Task] = {}
        self._wake = asyncio.Event()

    async def finished(self, task_id: str, on_change: Listener) -> Task:
        """The task in its last state. Raises ClientError when the API can't be asked any more."""
        future = asyncio.get_running_loop().create_future()
        self._waiters[task_id] = future, on_change
        self._wake.set()
        try:
            return await future
        finally:
            self._waiters.pop(task_id, None)
            self._seen.pop(task_id, None)

    async def run(self) -> None:
        """Asks, sooner while things move and later while they don't, until it is cancelled."""
        pause = SHORTEST
        while True:
            await self._wake.wait()
            await asyncio.sleep(pause)
            try:
                moved = await self._ask()
            except ClientError as error:
                self._fail(error)
                continue
            pause = SHORTEST if moved else min(pause * 1.5, LONGEST)
            if not self._waiters:
                self._wake.clear()

    async def _ask(self) -> bool:
        """One round; True when anything changed."""
        wanted = list(self._waiters)
        states: list[Task] = []
        if len(wanted) > FEW:
            states = (await self._api.get("/tasks", TaskPage, {"limit": PAGE})).items
        on_page = {task.id for task in states}
        for task_id in [task_id for task_id in wanted if task_id not in on_page][:FEW]:
            states.append(await self._one(task_id))
            # asked again only after the others had their turn
            if (waiter := self._waiters.pop(task_id, None)) is not None:
                self._waiters[task_id] = waiter
        news = [self._tell(task) for task in states]
        return any(news)

    async def _one(self, task_id: str) -> Task:
        try:
            return await self._api.get(f"/tasks/{task_id}", Task)
        except ApiError as error:
            if error.status != 404:
                raise
            return Task(id=task_id, status="cancelled", error=Problem(detail="its task is gone"))

    def _tell(self, task: Task) -> bool:
        """Passes a state on; True when it is news."""
        waiter = self._waiters.get(task.id)
        if waiter is None or self._seen.get(task.id) == task:
            return False
        self._seen[task.id] = task
        future, on_change = waiter
        on_change(task)
        if task.status in FINISHED and not future.done():
            future.set_result(task)
        return True

    def _fail(self, error: ClientError) -> None:
        for future, _ in self._waiters.values():
            if not future.done():
                future.set_exception(error)
        self._waiters.clear()
        self._wake.clear()
