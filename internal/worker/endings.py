"""What an attempt's end means for its task."""

from internal.entities.tasks import Ending, Outcome, Task, TaskStatus
from pkg.apperr import PERMANENT, TRANSIENT, AppError, Code
from pkg.resilience import backoff

HOLD_CAP_SECONDS = 60.0
RETRY_CAP_SECONDS = 600.0
MESSAGE_LENGTH = 2_000
HELD = TRANSIENT | {Code.QUEUE_FULL}
"""What a task waits for without using up a try: something that is down, or room for the tasks that it makes."""

CANCELLED = Ending(status=TaskStatus.CANCELLED, outcome=Outcome.CANCELLED)
RELEASED = Ending(status=TaskStatus.QUEUED, outcome=Outcome.RELEASED)


def ending_of(error: BaseException, task: Task, *, base_seconds: float) -> Ending:
    """Failed at once when the input is at fault, held when a dependency is down, else tried again until dead.

    A held task keeps its tries, so that an hour without a model server fills no dead letters.
    """
    code, message = _told(error)
    if code in PERMANENT:
        return Ending(status=TaskStatus.FAILED, outcome=Outcome.FAILED, error_code=code, error_message=message)
    if code in HELD:
        holds = task.attempts - task.retry_count - task.lost_leases
        wait = backoff(max(1, holds), base=base_seconds, cap=HOLD_CAP_SECONDS)
        asked = error.retry_after if isinstance(error, AppError) else None
        return Ending(
            status=TaskStatus.QUEUED,
            outcome=Outcome.HELD,
            error_code=code,
            error_message=message,
            delay=max(wait, asked or 0.0),
        )
    if task.retry_count < task.max_retries:
        return Ending(
            status=TaskStatus.QUEUED,
            outcome=Outcome.RETRIED,
            error_code=code,
            error_message=message,
            used_try=True,
            delay=backoff(task.retry_count + 1, base=base_seconds, cap=RETRY_CAP_SECONDS),
        )
    return Ending(status=TaskStatus.DEAD, outcome=Outcome.FAILED, error_code=code, error_message=message)


def _told(error: BaseException) -> tuple[Code, str]:
    """Code and message for users. What a library says stays in the log: it may quote content or addresses."""
    if isinstance(error, AppError):
        return error.code, error.detail.replace("\x00", "")[:MESSAGE_LENGTH]
    return Code.INTERNAL, f"The task stopped on an unexpected error ({type(error).__name__}); the log has the rest."
