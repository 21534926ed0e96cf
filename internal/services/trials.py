"""Trying a version of the processing beside the current one, taking it over, and going back: the operator's orders."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from internal.entities.processing import ProcessingState, StoredComparison
from internal.entities.tasks import Queue, TaskKind
from internal.repositories.processings import ProcessingsRepository, QueuedTask
from internal.services.processing import PROCESSINGS
from pkg.apperr import AppError, Code

LOOK_SECONDS = 0.2
WORST = 5
"""Contents named in a report: those whose readings differ most."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the contents of a media type that both versions have read; `errors` counts the others by code.

    `chunks` and `tokens` are the new reading's, as a ratio to the old one's.
    """

    contents: int
    errors: dict[str, int]
    text_kept: float | None
    text_added: float | None
    chunks_same: float | None
    chunks: float | None
    tokens: float | None
    vectors_mean: float | None
    vectors_least: float | None
    seconds: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a version that is tried makes of the share of files that it was given."""

    version: str
    against: str
    share: float
    by_media_type: dict[str, Figures]
    worst: list[StoredComparison]


class TrialService:
    """Each order is one transaction. `open_state` gives it, as the schema's owner."""

    def __init__(
        self, open_state: Callable[[], AbstractAsyncContextManager[ProcessingsRepository]], *, max_retries: int
    ) -> None:
        self._open = open_state
        self._max_retries = max_retries

    async def state(self) -> ProcessingState:
        """As it is now."""
        async with self._open() as tx:
            return await tx.state()

    async def start(self, version: str, share: float) -> ProcessingState:
        """Has a share (above 0, to 1) of what is read from now on read by this version too. Raises REQUEST_INVALID."""
        if version not in PROCESSINGS:
            raise _refused(f"There is no version {version} here; there are {', '.join(PROCESSINGS)}.")
        if not 0 < share <= 1:
            raise _refused("A share lies above 0 and is 1 at most; 0.05 is one file in twenty.")
        async with self._open() as tx:
            state = await tx.state()
            if version == state.current:
                raise _refused(f"Version {version} is the current one.")
            if state.candidate not in (None, version):
                raise _refused(f"Version {state.candidate} is being tried; stop that first.")
            changed = msgspec.structs.replace(state, candidate=version, share=share)
            await tx.set(changed)
            return changed

    async def stop(self) -> ProcessingState:
        """Ends a trial, and has what was read for it removed. Raises REQUEST_INVALID without one."""
        async with self._open() as tx:
            state = await tx.state()
            if state.candidate is None:
                raise _refused("No version is being tried.")
            changed = msgspec.structs.replace(state, candidate=None, share=0.0)
            await tx.set(changed)
            await tx.queue(TaskKind.PURGE_GENERATIONS, Queue.LEARNING, self._max_retries)
            return changed

    async def promote(self) -> AsyncGenerator[int]:
        """Makes the candidate the current version; gives how many tenants still have to follow, at last 0.

        What it has read answers at once, the rest is read in the background, and what it replaces is kept for KEPT.
        Raises REQUEST_INVALID without a candidate, and INTERNAL at the end if there are tenants that can't follow.
        """
        async with self._open() as tx:
            state = await tx.state()
            if state.candidate is None:
                raise _refused("No version is being tried; try it before you take it over (shadow start).")
            await tx.set(ProcessingState(current=state.candidate, previous=state.current, promoted_at=await tx.now()))
            tasks = await tx.queue(TaskKind.SWITCH_PROCESSING, Queue.HIGH_PRIORITY, self._max_retries)
        async for left in self._followed(tasks):
            yield left

    async def roll_back(self) -> AsyncGenerator[int]:
        """Goes back to the previous version; as `promote`.

        What only the newer one has read goes on answering until it is read again. Raises REQUEST_INVALID where there
        is no previous version, or what it read isn't kept any more.
        """
        async with self._open() as tx:
            state = await tx.state()
            if state.previous is None or state.kept_until is None:
                raise _refused(f"Version {state.current} was not taken over; there is nothing to go back to.")
            if state.kept_until <= await tx.now():
                raise _refused(
                    f"What version {state.previous} read was kept until {state.kept_until:%Y-%m-%d %H:%M} UTC and is"
                    f" removed now. Try it anew (shadow start {state.previous}), and take it over."
                )
            await tx.set(ProcessingState(current=state.previous))
            tasks = await tx.queue(TaskKind.SWITCH_PROCESSING, Queue.HIGH_PRIORITY, self._max_retries)
        async for left in self._followed(tasks):
            yield left

    async def report(self) -> Report:
        """Of the version that is tried. Raises REQUEST_INVALID without one."""
        async with self._open() as tx:
            state = await tx.state()
            if state.candidate is None:
                raise _refused("No version is being tried.")
            found = await tx.comparisons(state.candidate, state.current)
        return report_of(state, found)

    async def _followed(self, tasks: list[QueuedTask]) -> AsyncGenerator[int]:
        """How many of the tasks are left, whenever that changes. They go on whether anybody looks or not."""
        last, left, failed = -1, len(tasks), 0
        while left:
            async with self._open() as tx:
                left, failed = await tx.followed(tasks)
            if left != last and (left or not failed):
                yield left
            last = left
            if left:
                await asyncio.sleep(LOOK_SECONDS)
        if failed:
            raise AppError(
                Code.INTERNAL,
                f"{failed} of {len(tasks)} tenants could not follow, and answer as before; the workers' logs say why."
                " They are tried again with the next sweep of objects.",
            )


def report_of(state: ProcessingState, found: Sequence[StoredComparison]) -> Report:
    """Sums comparisons up."""
    groups: dict[str, list[StoredComparison]] = defaultdict(list)
    for item in found:
        groups[item.media_type].append(item)
    read = [item for item in found if item.error_code is None]
    read.sort(key=lambda item: min(item.text_kept or 0.0, 1.0 if item.vectors_least is None else item.vectors_least))
    failed = [item for item in found if item.error_code is not None]
    return Report(
        version=state.candidate or "",
        against=state.current,
        share=state.share,
        by_media_type={name: _figures(items) for name, items in sorted(groups.items())},
        worst=[*failed, *read][:WORST],
    )


def _figures(items: Sequence[StoredComparison]) -> Figures:
    read = [item for item in items if item.error_code is None]
    errors: dict[str, int] = defaultdict(int)
    for item in items:
        if item.error_code is not None:
            errors[item.error_code] += 1
    return Figures(
        contents=len(items),
        errors=dict(errors),
        text_kept=_mean(item.text_kept for item in read),
        text_added=_mean(item.text_added for item in read),
        chunks_same=_mean(item.chunks_same for item in read),
        chunks=_ratio(sum(item.chunks_after or 0 for item in read), sum(item.chunks_before or 0 for item in read)),
        tokens=_ratio(sum(item.tokens_after or 0 for item in read), sum(item.tokens_before or 0 for item in read)),
        vectors_mean=_mean(item.vectors_mean for item in read),
        vectors_least=min((item.vectors_least for item in read if item.vectors_least is not None), default=None),
        seconds=sum(item.seconds for item in items) / len(items),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ratio(new: int, old: int) -> float | None:
    return new / old if old else None


def _refused(detail: str) -> AppError:
    return AppError(Code.REQUEST_INVALID, detail)
