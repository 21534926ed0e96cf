"""Judges a history: what was lost, doubled, torn, leaked, left behind, or late. Pure, and itself tested."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

import msgspec

from tests.chaos.history import Answer, AttemptRow, Call, Fault, GenerationRow, History, Wanted

ENDED = {"succeeded", "failed", "dead", "cancelled"}
FOLLOWS = {
    "succeeded": {"succeeded"},
    "failed": {"failed", "dead"},
    "dead": {"failed", "lost"},
    "cancelled": {"cancelled", "lost", "retried", "held", "released", None},
}
"""Status of an ended task → outcomes that its last attempt may have."""
POISON_AFTER = 3
OUTAGES = {"postgres", "redis"}
REPLACING = ("replace", "restore")
HURTS = {"kill", "pause", "crash", "stopped", "term"}
LEEWAY = 0.5
"""Seconds between a signal and the moment that it is written down."""


class Verdict(msgspec.Struct, frozen=True):
    """What is wrong, and the figures of the run. An empty list of problems is a good run."""

    problems: list[str]
    figures: dict[str, float]


def judge(history: History) -> Verdict:
    """Every check, whatever the others find."""
    checks = (
        *(uploads, replacements, remains, duplicates, visibility, objects, tasks, attempts, poison, charges),
        *(resumption, flushes, events),
    )
    problems = [f"{check.__name__}: {problem}" for check in checks for problem in check(history)]
    return Verdict(problems, figures(history))


def uploads(history: History) -> Iterator[str]:
    """Each file ends as it must: refused, failed with its own error, or ready, whole, and found."""
    answers = _answers(history)
    last = _last_acknowledged(history)
    replaced = {(wanted.tenant, wanted.replaces) for wanted in history.wanted}
    # What nobody answered may take effect late, after the deletion of what its repetition had made.
    unanswered = {(call.tenant, call.file) for call in history.calls if call.verb == "upload" and not call.status}
    for wanted in history.wanted:
        key = (wanted.tenant, wanted.file)
        if wanted.replaces or key in replaced:
            continue
        name, call, answer = f"{wanted.file} of {wanted.tenant}", last.get(key), answers.get(key)
        if call is None:
            yield f"{name}: never acknowledged; the run was too short, or the product was down at its end"
        elif wanted.refused:
            if call.code != wanted.refused:
                yield f"{name}: answered {call.status} {call.code}, must be refused with {wanted.refused}"
        elif call.verb == "delete":
            if answer is not None and key not in unanswered:
                yield f"{name}: deleted, but {answer.document} is there"
        elif call.status not in (200, 202):
            yield f"{name}: answered {call.status} {call.code}"
        elif answer is None:
            yield f"{name}: acknowledged as {call.document or 'part of an archive'}, LOST"
        elif call.document and answer.document != call.document:
            yield f"{name}: acknowledged as {call.document}, but {answer.document} is there"
        elif wanted.failed:
            error = next((task.error for task in history.tasks if task.id == call.task), "")
            if answer.status != "failed" or error != wanted.failed:
                yield f"{name}: {answer.status} {error}, must fail with {wanted.failed}"
        else:
            yield from _incomplete(name, wanted, answer)


def replacements(history: History) -> Iterator[str]:
    """Of two files that had one document, the one that was asked for last answers, in that document."""
    answers, last = _answers(history), _last_acknowledged(history)
    named = {(wanted.tenant, wanted.file): wanted for wanted in history.wanted}
    for new in history.wanted:
        if not new.replaces:
            continue
        old = named[new.tenant, new.replaces]
        name, both = f"{old.file} of {old.tenant}", ((old.tenant, old.file), (new.tenant, new.file))
        if not all(key in last for key in both):
            yield f"{name}: never acknowledged or never replaced; the run was too short"
            continue
        call = max((last[key] for key in both), key=lambda call: call.at)
        there = [key for key in both if key in answers]
        if len(there) != 1:
            yield f"{name}: replaced, and {len(there)} of its two versions answer"
        elif there[0][1] != call.file and there[0] not in _unsure(history):
            yield f"{name}: {there[0][1]} answers, must be {call.file}"
        elif answers[there[0]].document != call.document:
            yield f"{name}: replaced in {call.document}, but {answers[there[0]].document} is there"
        else:
            yield from _incomplete(name, named[there[0]], answers[there[0]])


def remains(history: History) -> Iterator[str]:
    """What no document has is found by no search."""
    for answer in history.answers:
        if not answer.document and answer.found:
            yield f"{answer.file} of {answer.tenant} is gone, but a search finds {answer.found}"


def duplicates(history: History) -> Iterator[str]:
    """One content for the same bytes of a tenant, one published generation each, each passage once and in order."""
    for (tenant, sha), count in Counter((row.tenant, row.sha256) for row in history.contents).items():
        if count > 1:
            yield f"{count} contents of {tenant} with the same bytes {sha[:12]}"
    published = {row.id: row for row in history.generations if row.status == "published"}
    for content, count in Counter(row.content for row in published.values()).items():
        if count > 1:
            yield f"content {content} has {count} published generations"
    texts = {(wanted.tenant, wanted.sha256): wanted.texts for wanted in history.wanted}
    for row in history.contents:
        if row.generation:
            yield from _torn(row.generation, published.get(row.generation), texts.get((row.tenant, row.sha256), []))
    counted: Counter[str] = Counter()
    for row in published.values():
        counted[row.tenant] += row.chunks
    if counted != Counter(history.statistics):
        yield f"the word index counts {history.statistics} passages, but {dict(counted)} are published"


def visibility(history: History) -> Iterator[str]:
    """No search ever saw a part of a document, or a document of somebody else."""
    own: dict[tuple[str, str], set[str]] = defaultdict(set)
    for call in history.calls:
        if call.verb != "delete" and call.document:
            own[call.tenant, call.file].add(call.document)
    bytes_of = {row.id: (row.tenant, row.sha256) for row in history.contents}
    names = {(wanted.tenant, wanted.sha256): (wanted.tenant, wanted.file) for wanted in history.wanted}
    for row in history.documents:
        if (name := names.get(bytes_of.get(row.content, ("", "")))) is not None:
            own[name].add(row.id)
    size = {(wanted.tenant, wanted.file): len(wanted.texts) for wanted in history.wanted}
    for seen in history.sightings:
        whole = size[seen.tenant, seen.file]
        for document, count in seen.found.items():
            if document not in own[seen.tenant, seen.file]:
                yield f"a search of {seen.tenant} for {seen.file} found {document}, which isn't its own"
            elif count != whole:
                yield f"a search of {seen.tenant} for {seen.file} saw {count} of {whole} passages of {document}"


def objects(history: History) -> Iterator[str]:
    """Every content has its object. Objects without a row are waste, and counted among the figures."""
    kept = set(history.objects)
    for row in history.contents:
        if row.key not in kept:
            yield f"content {row.id} of {row.tenant} has lost its object"
        if not row.key.startswith(f"{row.tenant}/"):
            yield f"content {row.id} of {row.tenant} has the object {row.key} of another"


def tasks(history: History) -> Iterator[str]:
    """Everything ended, and nothing of a removed document is left."""
    if history.unsettled:
        yield f"{history.unsettled} batches never ended"
    contents = {row.id for row in history.contents}
    for task in history.tasks:
        if task.status not in ENDED:
            yield f"task {task.id} ({task.kind}) is still {task.status}"
        if task.status == "dead":
            yield f"task {task.id} ({task.kind}) is dead: {task.error}"
    for row in history.documents:
        if row.content not in contents:
            yield f"document {row.id} has no content"
    held = {row.content for row in history.documents}.union(history.versions)
    for content in contents - held:
        yield f"content {content} is held by no document and was not purged"


def attempts(history: History) -> Iterator[str]:
    """Attempts are numbered without a gap, never overlap, each has an outcome, and the fence rose with each."""
    tried = _by_task(history)
    for task in history.tasks:
        row = tried.get(task.id, [])
        outcomes = [attempt.outcome for attempt in row]
        if [attempt.number for attempt in row] != list(range(1, task.attempts + 1)) or task.fence != task.attempts:
            yield f"task {task.id}: {task.attempts} attempts and fence {task.fence}, but numbers {outcomes}"
        for before, after in pairwise(row):
            if not before.finished or after.started < before.finished:
                yield f"task {task.id}: attempt {after.number} began before {before.number} had ended"
        if task.status in ENDED:
            if not all(outcomes):
                yield f"task {task.id} is {task.status}, but an attempt has no outcome: {outcomes}"
            if (outcomes[-1] if outcomes else None) not in FOLLOWS[task.status]:
                yield f"task {task.id} is {task.status} after {outcomes}"
        if outcomes.count("succeeded") > 1:
            yield f"task {task.id} succeeded {outcomes.count('succeeded')} times"


def poison(history: History) -> Iterator[str]:
    """Only what lost its worker three times was given up as poison, and each time it was we who took the worker."""
    tried = _by_task(history)
    hurt = _hurt(history)
    armed = {fault.pid for fault in history.faults if fault.kind == "armed"}
    for task in history.redriven:
        lost = [attempt for attempt in tried.get(task, []) if attempt.outcome == "lost"]
        ours = [attempt for attempt in lost if attempt.pid in armed or _cause(attempt, hurt) is not None]
        if len(ours) < POISON_AFTER:
            yield f"task {task} was taken for poison, but only {len(ours)} of its {len(lost)} lost attempts were ours"


def charges(history: History) -> Iterator[str]:
    """Beyond once for each text, nothing is paid for but the batch that an attempt had in hand when it was cut off."""
    paid, due = _charges(history)
    cut_off = sum(attempt.outcome not in ("succeeded", "failed") for attempt in history.attempts)
    extra = sum((paid - due).values())
    if extra > history.limits.batch * cut_off:
        yield f"{extra} texts were paid for twice, more than {history.limits.batch} for each of {cut_off} lost attempts"
    strange = set(paid) - set(due)
    if strange:
        yield f"{len(strange)} texts were embedded that are in no file"


def resumption(history: History) -> Iterator[str]:
    """Another attempt begins soon after its worker was lost, counted from when the servers were there."""
    for task, seconds in _resumed(history):
        if seconds > history.limits.resume_seconds:
            yield f"task {task} was resumed after {seconds:.1f} s"


def flushes(history: History) -> Iterator[str]:
    """After Redis was wiped, what had lain there is back in time."""
    for fault in history.faults:
        if fault.kind == "flush" and (fault.took is None or fault.took > history.limits.backlog_seconds):
            yield f"the backlog was not back {history.limits.backlog_seconds:.0f} s after a FLUSHALL ({fault.took})"


def events(history: History) -> Iterator[str]:
    """Every event was handed on, and no tenant's positions have a gap."""
    if history.unpublished:
        yield f"{history.unpublished} events were never handed on"
    if history.gaps:
        yield f"{history.gaps} positions have no event"


def figures(history: History) -> dict[str, float]:
    """What a run is compared by."""
    kinds = Counter(fault.kind for fault in history.faults)
    outcomes = Counter(attempt.outcome for attempt in history.attempts)
    paid, due = _charges(history)
    resumed = sorted(seconds for _task, seconds in _resumed(history))
    kept = {row.key for row in history.contents}
    back = [fault.took for fault in history.faults if fault.kind == "flush" and fault.took is not None]
    return {
        "uploads acknowledged": sum(call.verb == "upload" and call.status in (200, 202) for call in history.calls),
        "uploads without an answer": sum(call.verb == "upload" and not call.status for call in history.calls),
        "replacements acknowledged": sum(
            call.verb in REPLACING and call.status in (200, 202) for call in history.calls
        ),
        "replaced, either may answer": len(_unsure(history)),
        "deletions acknowledged": sum(call.verb == "delete" and call.status == 202 for call in history.calls),
        "searches": len(history.sightings),
        "kills": kinds["kill"],
        "pauses": kinds["pause"],
        "deaths at failpoints": kinds["crash"],
        "FLUSHALLs": kinds["flush"],
        "other faults": sum(kinds[kind] for kind in kinds.keys() - {"kill", "pause", "crash", "flush", "armed"}),
        "tasks": len(history.tasks),
        "attempts lost": outcomes["lost"],
        "attempts held": outcomes["held"],
        "attempts retried": outcomes["retried"],
        "taken for poison, tried again": len(history.redriven),
        "texts paid for": sum(paid.values()),
        "texts paid for twice": sum((paid - due).values()),
        "objects without a row": len(set(history.objects) - kept),
        "resumed after, median s": round(resumed[len(resumed) // 2], 1) if resumed else 0.0,
        "resumed after, longest s": round(resumed[-1], 1) if resumed else 0.0,
        "backlog back after, longest s": round(max(back), 1) if back else 0.0,
    }


def _answers(history: History) -> dict[tuple[str, str], Answer]:
    return {(answer.tenant, answer.file): answer for answer in history.answers if answer.document}


def _unsure(history: History) -> set[tuple[str, str]]:
    """Files that a replacement without an answer may have brought back late."""
    return {(call.tenant, call.file) for call in history.calls if call.verb in REPLACING and not call.status}


def _incomplete(name: str, wanted: Wanted, answer: Answer) -> Iterator[str]:
    if answer.status != "ready" or answer.chunks != len(wanted.texts):
        yield f"{name}: {answer.status} with {answer.chunks} passages, must be ready with {len(wanted.texts)}"
    elif answer.found != {answer.document: len(wanted.texts)}:
        yield f"{name}: a search finds {answer.found}, must find {len(wanted.texts)} of {answer.document}"


def _last_acknowledged(history: History) -> dict[tuple[str, str], Call]:
    """The newest call of each file that was answered for good; a deletion of what is gone already counts."""
    found: dict[tuple[str, str], Call] = {}
    for call in sorted(history.calls, key=lambda call: call.at):
        gone = call.verb == "delete" and call.status == 404
        if 0 < call.status < 429 and (call.status not in (404, 409) or gone):
            found[call.tenant, call.file] = call
    return found


def _torn(identifier: str, row: GenerationRow | None, texts: list[str]) -> Iterator[str]:
    if row is None:
        yield f"generation {identifier} is pointed at but not published"
    elif not len(row.texts) == row.chunks == row.vectors == row.terms:
        yield (
            f"generation {identifier} says {row.chunks} passages and has {len(row.texts)}, with {row.vectors} vectors"
            f" and {row.terms} in the word index"
        )
    elif row.texts != texts:
        yield f"generation {identifier} has other passages than its file ({len(row.texts)} of {len(texts)})"


def _by_task(history: History) -> dict[str, list[AttemptRow]]:
    found: dict[str, list[AttemptRow]] = defaultdict(list)
    for attempt in sorted(history.attempts, key=lambda attempt: attempt.number):
        found[attempt.task].append(attempt)
    return found


def _hurt(history: History) -> dict[int, list[Fault]]:
    """What was done to each process, the latest first."""
    found: dict[int, list[Fault]] = defaultdict(list)
    for fault in sorted(history.faults, key=lambda fault: -fault.at):
        if fault.kind in HURTS:
            found[fault.pid].append(fault)
    return found


def _cause(attempt: AttemptRow, hurt: dict[int, list[Fault]]) -> Fault | None:
    """What took the worker from an attempt."""
    for fault in hurt.get(attempt.pid, []):
        if attempt.started - LEEWAY <= max(fault.at, fault.until) and fault.at <= attempt.finished:
            return fault
    return None


def _resumed(history: History) -> Iterator[tuple[str, float]]:
    """Each lost attempt's task and the seconds to its next attempt."""
    hurt = _hurt(history)
    outages = [fault for fault in history.faults if fault.kind in OUTAGES]
    for task, row in _by_task(history).items():
        for attempt, following in pairwise(row):
            fault = _cause(attempt, hurt) if attempt.outcome == "lost" else None
            if fault is None or task in history.redriven:
                continue  # what a person tried again waited for that person
            since = fault.at
            for outage in sorted(outages, key=lambda outage: outage.at):
                if since <= outage.until and outage.at <= following.started:
                    since = max(since, min(outage.until, following.started))
            yield task, following.started - since


def _charges(history: History) -> tuple[Counter[str], Counter[str]]:
    """Texts paid for, and what was due: once for each time that a tenant's content came to be, or came back."""
    due: Counter[str] = Counter()
    again = Counter(
        (call.tenant, call.file)
        for call in history.calls
        if call.verb in ("delete", "restore") and call.status in (0, 200, 202)
    )
    for wanted in history.wanted:
        lives = 1 + again[wanted.tenant, wanted.file]
        for text in wanted.texts:
            due[text] += lives
    return Counter(history.embedded), due
