"""What readers of events are told, and when a reader is left behind."""

from datetime import UTC, datetime
from typing import Any

import pytest

from internal.entities import events
from internal.entities.events import EventPositions, StoredEvent
from internal.entities.ids import new_id
from internal.handlers.events import read_position
from internal.services.event_feeds import QUEUED, Reader
from internal.services.event_pages import Message
from internal.services.notices import TELLING, notice_of
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role


def stored(kind: str, **payload: Any) -> StoredEvent:
    return StoredEvent(
        position=7,
        kind=kind,
        payload=payload,
        created_at=datetime.now(UTC),
        progress=0.25,
        error_message="It is damaged.",
        shared=True,
    )


def reader() -> Reader:
    ctx = Context(tenant_id=new_id(), user_id=new_id(), role=Role.VIEWER, request_id="", trace_id="")
    return Reader(ctx, "dh_key", "subject")


def message(position: int | None) -> Message:
    return Message(body=b"{}", position=position, shared=True)


def test_every_event_of_the_product_is_told():
    assert {kind.kind for kind in events.Event.__subclasses__() if kind.__module__ == events.__name__} == set(TELLING)
    assert notice_of(stored("test.marked", pid=1)) is None


@pytest.mark.parametrize("status", ["succeeded", "failed", "dead", "cancelled"])
def test_the_end_of_a_task_is_named_by_its_status(status: str):
    failed = status in ("failed", "dead")
    payload = {"task_id": "t", "task_kind": "k", "status": status, "document_id": None}
    found = notice_of(stored("task.finished", **payload, error_code="file.unreadable" if failed else None))
    assert found is not None
    assert (found.type, found.id) == (f"task.{status}", 7)
    assert found.data["progress"] == (1.0 if status == "succeeded" else 0.25)
    assert found.data["error"] == ({"code": "file.unreadable", "message": "It is damaged."} if failed else None)


@pytest.mark.parametrize(
    ("oldest", "newest", "reached", "lost"),
    [(None, 0, [0], [1]), (None, 9, [9], [0, 8, 10]), (4, 9, [3, 4, 8, 9], [0, 2, 10]), (9, 9, [8, 9], [7])],
)
def test_from_where_everything_can_still_be_read(oldest: int | None, newest: int, reached: list[int], lost: list[int]):
    positions = EventPositions(oldest, newest)
    assert all(positions.reach(position) for position in reached)
    assert not any(positions.reach(position) for position in lost)


async def test_a_reader_without_room_is_ended_and_holds_nothing():
    slow = reader()
    slow.offer([message(1)] * QUEUED)
    assert slow.room == 0
    slow.offer([message(2)])
    assert slow.room == QUEUED
    slow.offer([message(3)])
    with pytest.raises(AppError) as raised:
        await slow.take()
    assert raised.value.code is Code.EVENTS_TOO_SLOW
    slow.end(AppError(Code.SERVER_STOPPING, "later"))
    with pytest.raises(AppError, match="too_slow"):
        slow.check()


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "x", "１", "9" * 30, str(2**63)])
def test_what_is_no_position_is_refused(text: str):
    with pytest.raises(AppError) as raised:
        read_position(text)
    assert raised.value.code is Code.REQUEST_INVALID


def test_a_position_is_read():
    assert [read_position(text) for text in (None, "0", str(2**63 - 1))] == [None, 0, 2**63 - 1]
