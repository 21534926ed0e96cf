"""Rules of tasks that need no server."""

import asyncio
import itertools
from datetime import UTC, datetime
from typing import Any

import pytest

from internal.entities.events import TaskFinished
from internal.entities.ids import new_id
from internal.entities.tasks import Outcome, Queue, Task, TaskKind, TaskStatus, check_transition
from internal.entities.waiting import ROOM_LONGEST, ROOM_SHORTEST, ROOM_UNKNOWN_SECONDS, room_seconds
from internal.worker.batching import Batched
from internal.worker.cron import Chore, Schedule
from internal.worker.endings import HOLD_CAP_SECONDS, ending_of
from internal.worker.jobs import Job, Jobs, product_jobs
from pkg.apperr import PERMANENT, TRANSIENT, AppError, Code, SettingsError
from pkg.ctxutil import Role


def task(**changes: Any) -> Task:
    now = datetime.now(UTC)
    fields: dict[str, Any] = {
        "tenant_id": new_id(), "id": new_id(), "kind": "note", "version": 1, "queue": Queue.DEFAULT, "priority": 0,
        "status": TaskStatus.RUNNING, "stage": "running", "progress": 0.0, "user_id": new_id(), "role": Role.MEMBER,
        "request_id": "r", "trace_id": "t", "document_id": None, "content_id": None, "payload": {}, "result": None,
        "error_code": None, "error_message": None, "attempts": 1, "retry_count": 0, "max_retries": 2,
        "lost_leases": 0, "cancel_requested": False, "due_at": now, "read_at": now, "created_at": now,
        "started_at": now, "finished_at": None,
    }  # fmt: skip
    return Task(**{**fields, **changes})


ALLOWED = {
    ("queued", "running"),
    ("queued", "cancelled"),
    ("running", "queued"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "dead"),
    ("running", "cancelled"),
    ("failed", "queued"),
    ("dead", "queued"),
    ("dead", "failed"),
    ("cancelled", "queued"),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(TaskStatus, TaskStatus)))
def test_only_these_transitions_are_allowed(before: TaskStatus, after: TaskStatus) -> None:
    if (before.value, after.value) in ALLOWED:
        check_transition(before, after)
        return
    with pytest.raises(AppError) as error:
        check_transition(before, after)
    expected = {"cancelled": Code.TASK_NOT_CANCELLABLE, "queued": Code.TASK_NOT_RETRYABLE}
    assert error.value.code is expected.get(after.value, Code.INTERNAL)


@pytest.mark.parametrize("code", sorted(PERMANENT))
def test_a_fault_of_the_input_fails_at_once(code: Code) -> None:
    ending = ending_of(AppError(code, "say what to do"), task(), base_seconds=2)
    assert (ending.status, ending.outcome, ending.used_try) == (TaskStatus.FAILED, Outcome.FAILED, False)
    assert (ending.error_code, ending.error_message) == (code, "say what to do")


@pytest.mark.parametrize("code", sorted(TRANSIENT))
def test_a_dependency_that_is_down_holds_without_using_a_try(code: Code) -> None:
    ending = ending_of(AppError(code, "down"), task(retry_count=2, attempts=3), base_seconds=2)
    assert (ending.status, ending.outcome, ending.used_try) == (TaskStatus.QUEUED, Outcome.HELD, False)
    assert 1 <= ending.delay <= 2


def test_a_hold_grows_to_a_minute_and_honours_retry_after() -> None:
    long = ending_of(AppError(Code.MODEL_UNAVAILABLE, "down"), task(attempts=40), base_seconds=2)
    assert HOLD_CAP_SECONDS / 2 <= long.delay <= HOLD_CAP_SECONDS
    asked = ending_of(AppError(Code.MODEL_UNAVAILABLE, "429", retry_after=90), task(), base_seconds=2)
    assert asked.delay == 90


def test_other_errors_double_their_backoff_and_then_die() -> None:
    delays = [ending_of(ValueError(), task(retry_count=n), base_seconds=2).delay for n in range(2)]
    assert 1 <= delays[0] <= 2 <= delays[1] <= 4
    dead = ending_of(ValueError(), task(retry_count=2), base_seconds=2)
    assert (dead.status, dead.used_try) == (TaskStatus.DEAD, False)


@pytest.mark.parametrize(
    ("excess", "ended", "seconds", "expected"),
    [
        (0, 30, 60, 2),
        (5, 30, 60, 12),
        (0, 600, 60, ROOM_SHORTEST),
        (0, 1, 600, ROOM_LONGEST),
        (0, 0, 0, ROOM_UNKNOWN_SECONDS),
        (-3, 30, 60, 2),
    ],
)
def test_room_comes_as_fast_as_tasks_end(excess: int, ended: int, seconds: float, expected: float) -> None:
    assert room_seconds(excess, ended=ended, seconds=seconds) == expected


def test_what_a_library_says_isnt_shown_and_nul_is_taken_out() -> None:
    assert "password" not in str(ending_of(ValueError("password=x"), task(), base_seconds=2).error_message)
    told = ending_of(AppError(Code.FILE_UNREADABLE, "a\x00b" * 2000), task(), base_seconds=2).error_message
    assert told is not None
    assert "\x00" not in told
    assert len(told) == 2000


async def nothing(*_: object) -> dict[str, Any]:
    return {}


def test_start_fails_when_a_kind_has_no_job_or_two() -> None:
    with pytest.raises(SettingsError, match="purge_content"):
        Jobs([Job(kind="ingest_content", version=1, handler=nothing)]).require(TaskKind)
    with pytest.raises(SettingsError, match="two jobs"):
        Jobs([Job(kind="twice", version=1, handler=nothing)] * 2)
    assert set(product_jobs(**dict.fromkeys(TaskKind, nothing)).versions) == set(TaskKind)
    with pytest.raises(SettingsError, match="purge_content"):
        product_jobs(ingest_content=nothing)


def test_an_events_payload_carries_its_version_and_ids() -> None:
    found = TaskFinished(task_id=new_id(), task_kind="note", status="dead").payload()
    assert found["version"] == 1
    assert isinstance(found["task_id"], str)
    assert found["document_id"] is None


async def test_what_is_asked_during_a_call_goes_into_the_next() -> None:
    calls: list[list[int]] = []

    async def double(items: Any) -> list[int]:
        calls.append(list(items))
        await asyncio.sleep(0.01)
        return [item * 2 for item in items]

    batched: Batched[int, int] = Batched(double)
    first = asyncio.create_task(batched.ask(1))
    await asyncio.sleep(0.001)
    rest = await asyncio.gather(*(batched.ask(n) for n in (2, 3, 4)))
    assert (await first, rest) == (2, [4, 6, 8])
    assert calls == [[1], [2, 3, 4]]


async def test_a_batch_that_fails_fails_its_own_askers_only() -> None:
    async def picky(items: Any) -> list[int]:
        if 13 in items:
            raise ValueError("thirteen")
        return list(items)

    batched: Batched[int, int] = Batched(picky)
    with pytest.raises(ValueError, match="thirteen"):
        await batched.ask(13)
    assert await batched.ask(14) == 14


async def test_chores_run_when_due_and_again_when_they_failed() -> None:
    now = 0.0
    ran: list[str] = []

    async def often() -> None:
        ran.append("often")

    async def fragile() -> None:
        ran.append("fragile")
        if ran.count("fragile") == 1:
            raise ValueError

    schedule = Schedule(
        [Chore(name="often", every_seconds=2, action=often), Chore(name="fragile", every_seconds=10, action=fragile)],
        clock=lambda: now,
    )
    with pytest.raises(ValueError):  # noqa: PT011
        await schedule.run_due()
    await schedule.run_due()
    assert ran == ["often", "fragile", "fragile"]
    assert schedule.seconds_to_next() == 2
    now = 2.5
    await schedule.run_due()
    assert ran[-1] == "often"
    assert len(ran) == 4
