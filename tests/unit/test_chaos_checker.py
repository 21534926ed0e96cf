"""The checker of chaos runs can fail: a good history passes, and each way of breaking it is told."""

from collections.abc import Callable

import msgspec
import pytest

from tests.chaos.checker import figures, judge
from tests.chaos.history import (
    Answer,
    AttemptRow,
    Call,
    ContentRow,
    DocumentRow,
    Fault,
    GenerationRow,
    History,
    Limits,
    Sighting,
    TaskRow,
    Wanted,
)

TEXTS = ["t1", "t2", "t3"]
replace = msgspec.structs.replace


def task(identifier: str, status: str, *, document: str, content: str, error: str = "", **counts: int) -> TaskRow:
    return TaskRow(
        tenant="a",
        id=identifier,
        kind="ingest_content",
        status=status,
        document=document,
        content=content,
        error=error,
        attempts=counts.get("attempts", 1),
        fence=counts.get("fence", 1),
    )


def good() -> History:
    """One file was read after its first worker had been killed, a damaged one failed, an infected one was refused."""
    return History(
        seed=1,
        limits=Limits(batch=4, lease_seconds=3),
        wanted=[
            Wanted(tenant="a", file="f", sha256="s1", texts=TEXTS),
            Wanted(tenant="a", file="broken", sha256="s2", failed="file.unreadable"),
            Wanted(tenant="b", file="virus", sha256="s3", refused="file.infected"),
        ],
        calls=[
            Call(at=1, tenant="a", file="f", verb="upload", status=0),
            Call(at=2, tenant="a", file="f", verb="upload", status=202, document="d1", task="k1"),
            Call(at=2, tenant="a", file="broken", verb="upload", status=202, document="d2", task="k2"),
            Call(at=2, tenant="b", file="virus", verb="upload", status=422, code="file.infected"),
        ],
        sightings=[
            Sighting(at=3, tenant="a", file="f", found={}),
            Sighting(at=30, tenant="a", file="f", found={"d1": 3}),
        ],
        faults=[Fault(at=5, kind="kill", pid=11), Fault(at=6, kind="flush", took=4.0)],
        tasks=[
            task("k1", "succeeded", document="d1", content="c1", attempts=2, fence=2),
            task("k2", "failed", document="d2", content="c2", error="file.unreadable"),
        ],
        attempts=[
            AttemptRow(tenant="a", task="k1", number=1, pid=11, started=4, finished=9, outcome="lost"),
            AttemptRow(tenant="a", task="k1", number=2, pid=12, started=10, finished=12, outcome="succeeded"),
            AttemptRow(tenant="a", task="k2", number=1, pid=12, started=4, finished=5, outcome="failed"),
        ],
        contents=[
            ContentRow(tenant="a", id="c1", sha256="s1", key="a/c1", generation="g1"),
            ContentRow(tenant="a", id="c2", sha256="s2", key="a/c2", generation=""),
        ],
        documents=[
            DocumentRow(tenant="a", id="d1", content="c1", generation="g1"),
            DocumentRow(tenant="a", id="d2", content="c2", generation=""),
        ],
        generations=[
            GenerationRow(
                tenant="a", id="g1", content="c1", status="published", chunks=3, texts=TEXTS, vectors=3, terms=3
            )
        ],
        answers=[
            Answer(tenant="a", file="f", document="d1", status="ready", chunks=3, found={"d1": 3}),
            Answer(tenant="a", file="broken", document="d2", status="failed", chunks=0, found={}),
        ],
        objects=["a/c1", "a/c2"],
        embedded={"t1": 2, "t2": 1, "t3": 1},
        statistics={"a": 3},
    )


def test_a_good_history_has_no_problem() -> None:
    assert judge(good()).problems == []


def change(name: str, index: int = 0, **fields: object) -> Callable[[History], None]:
    """Replaces fields of one row."""

    def apply(history: History) -> None:
        rows = getattr(history, name)
        rows[index] = replace(rows[index], **fields)

    return apply


def put(name: str, value: object) -> Callable[[History], None]:
    """Adds a row, or sets a value."""

    def apply(history: History) -> None:
        found = getattr(history, name)
        if isinstance(found, list) and not isinstance(value, list):
            found.append(value)
        else:
            setattr(history, name, value)

    return apply


def drop(name: str, index: int = 0) -> Callable[[History], None]:
    return lambda history: getattr(history, name).pop(index)


BROKEN = {
    "lost": (drop("answers"), "uploads: f of a: acknowledged as d1, LOST"),
    "never acknowledged": (drop("calls", 1), "uploads: f of a: never acknowledged"),
    "another document": (change("answers", document="dx"), "but dx is there"),
    "not ready": (change("answers", status="processing"), "processing with 3 passages, must be ready with 3"),
    "incomplete": (change("answers", chunks=2), "ready with 2 passages"),
    "not found": (change("answers", found={}), "a search finds {}"),
    "half found": (change("answers", found={"d1": 2}), "a search finds {'d1': 2}"),
    "wrong error": (change("tasks", 1, error="internal.error"), "must fail with file.unreadable"),
    "virus taken": (change("calls", 3, status=202, code=""), "must be refused with file.infected"),
    "refused": (change("calls", 1, status=413, code="file.too_large"), "answered 413 file.too_large"),
    "same bytes twice": (
        put("contents", ContentRow(tenant="a", id="c9", sha256="s1", key="a/c1", generation="")),
        "2 contents of a with the same bytes",
    ),
    "published twice": (
        put(
            "generations",
            GenerationRow(
                tenant="a", id="g2", content="c1", status="published", chunks=0, texts=[], vectors=0, terms=0
            ),
        ),
        "2 published generations",
    ),
    "passage twice": (change("generations", texts=["t1", "t2", "t2"]), "has other passages than its file"),
    "passage missing": (change("generations", texts=["t1", "t2"]), "says 3 passages and has 2"),
    "vector missing": (change("generations", vectors=2), "with 2 vectors"),
    "word missing": (change("generations", terms=2), "2 in the word index"),
    "not published": (change("generations", status="building"), "is pointed at but not published"),
    "miscounted": (put("statistics", {"a": 6}), "the word index counts {'a': 6}"),
    "half visible": (change("sightings", 1, found={"d1": 2}), "saw 2 of 3 passages of d1"),
    "another's": (change("sightings", 1, found={"d1": 3, "dz": 3}), "found dz, which isn't its own"),
    "object lost": (drop("objects"), "content c1 of a has lost its object"),
    "object of another": (change("contents", key="b/c1"), "has the object b/c1 of another"),
    "still running": (change("tasks", status="running"), "is still running"),
    "dead": (change("tasks", status="dead", error="internal.error"), "is dead: internal.error"),
    "no content": (drop("contents", 1), "document d2 has no content"),
    "not purged": (drop("documents", 1), "content c2 is held by no document"),
    "gap in attempts": (change("attempts", 1, number=3), "2 attempts and fence 2, but numbers"),
    "fence too low": (change("tasks", fence=1), "2 attempts and fence 1"),
    "overlap": (change("attempts", 1, started=8), "attempt 2 began before 1 had ended"),
    "no outcome": (change("attempts", 0, outcome=""), "an attempt has no outcome"),
    "wrong outcome": (change("attempts", 1, outcome="retried"), "is succeeded after ['lost', 'retried']"),
    "done twice": (change("attempts", 0, outcome="succeeded"), "succeeded 2 times"),
    "poison that isn't": (put("redriven", "k1"), "only 1 of its 1 lost attempts were ours"),
    "paid too often": (put("embedded", {"t1": 6, "t2": 1, "t3": 1}), "5 texts were paid for twice"),
    "paid for nothing": (put("embedded", {"t1": 1, "t2": 1, "t3": 1, "tx": 1}), "1 texts were embedded that are in no"),
    "late": (change("attempts", 1, started=36, finished=40), "resumed after 31.0 s"),
    "backlog late": (change("faults", 1, took=61.0), "was not back 60 s after"),
    "backlog lost": (change("faults", 1, took=None), "was not back 60 s after"),
    "event lost": (put("unpublished", 2), "2 events were never handed on"),
    "gap in events": (put("gaps", 1), "1 positions have no event"),
}


@pytest.mark.parametrize(("break_it", "told"), BROKEN.values(), ids=BROKEN)
def test_every_way_to_break_it_is_told(break_it: Callable[[History], None], told: str) -> None:
    history = good()
    break_it(history)
    assert any(told in problem for problem in judge(history).problems), judge(history).problems


def replaced() -> History:
    """The good history, in which another file has taken the first one's document over."""
    history = good()
    history.wanted.append(Wanted(tenant="a", file="f2", sha256="s4", texts=["u1"], replaces="f"))
    history.calls.append(Call(at=20, tenant="a", file="f2", verb="replace", status=202, document="d1", task="k3"))
    history.tasks.append(task("k3", "succeeded", document="d1", content="c4"))
    history.attempts.append(
        AttemptRow(tenant="a", task="k3", number=1, pid=12, started=21, finished=22, outcome="succeeded")
    )
    history.contents[0] = replace(history.contents[0], generation="")
    history.contents.append(ContentRow(tenant="a", id="c4", sha256="s4", key="a/c4", generation="g4"))
    history.documents[0] = replace(history.documents[0], content="c4", generation="g4")
    history.versions = ["c1", "c4"]
    history.generations = [
        GenerationRow(tenant="a", id="g4", content="c4", status="published", chunks=1, texts=["u1"], vectors=1, terms=1)
    ]
    history.answers[0] = Answer(tenant="a", file="f", document="", status="", chunks=0, found={})
    history.answers.append(Answer(tenant="a", file="f2", document="d1", status="ready", chunks=1, found={"d1": 1}))
    history.objects.append("a/c4")
    history.embedded["u1"] = 1
    history.statistics = {"a": 1}
    return history


def restored(status: int) -> Callable[[History], None]:
    return put("calls", Call(at=25, tenant="a", file="f", verb="restore", status=status, document="d1"))


BROKEN_REPLACED = {
    "never replaced": (lambda history: history.calls.pop(), "replacements: f of a: never acknowledged or never"),
    "the version lost": (drop("answers", 2), "replacements: f of a: replaced, and 0 of its two versions answer"),
    "both answer": (change("answers", 0, document="d9"), "and 2 of its two versions answer"),
    "another document": (change("answers", 2, document="dx"), "replaced in d1, but dx is there"),
    "incomplete": (change("answers", 2, found={}), "replacements: f of a: a search finds {}"),
    "not back": (restored(202), "replacements: f of a: f2 answers, must be f"),
    "the old one is found": (change("answers", 0, found={"d1": 3}), "remains: f of a is gone, but a search finds"),
    "a version's content is gone": (put("versions", []), "content c1 is held by no document and was not purged"),
    "half visible": (put("sightings", Sighting(at=23, tenant="a", file="f2", found={"d1": 2})), "saw 2 of 1 passages"),
    "a batch that hangs": (put("unsettled", 1), "tasks: 1 batches never ended"),
}


def test_a_replaced_file_leaves_its_document_to_the_other() -> None:
    history = replaced()
    assert judge(history).problems == []
    restored(0)(history)
    assert judge(history).problems == [], "nobody knows whether the restoration came through"
    assert figures(history)["replaced, either may answer"] == 1


@pytest.mark.parametrize(("break_it", "told"), BROKEN_REPLACED.values(), ids=BROKEN_REPLACED)
def test_every_way_to_break_a_replacement_is_told(break_it: Callable[[History], None], told: str) -> None:
    history = replaced()
    break_it(history)
    assert any(told in problem for problem in judge(history).problems), judge(history).problems


def test_what_an_archive_brought_is_looked_for_by_its_bytes() -> None:
    history = good()
    history.calls[1] = replace(history.calls[1], document="", task="")
    assert judge(history).problems == []
    history.answers.pop(0)
    assert any("f of a: acknowledged as part of an archive, LOST" in problem for problem in judge(history).problems)


def test_a_deletion_leaves_nothing() -> None:
    history = good()
    history.calls.append(Call(at=20, tenant="a", file="broken", verb="delete", status=202, document="d2"))
    assert any("broken of a: deleted, but d2 is there" in problem for problem in judge(history).problems)
    for name in ("answers", "contents", "documents"):
        getattr(history, name).pop(1)
    history.objects.remove("a/c2")
    assert judge(history).problems == []


def test_what_nobody_answered_may_come_after_the_deletion() -> None:
    history = good()
    history.calls.append(Call(at=20, tenant="a", file="f", verb="delete", status=404, document="d1"))
    history.answers[0] = replace(history.answers[0], document="d7", found={"d7": 3})
    history.documents[0] = replace(history.documents[0], id="d7")
    assert judge(history).problems == []


def test_an_outage_counts_from_its_end() -> None:
    history = good()
    history.faults.append(Fault(at=8, kind="postgres", until=20))
    history.attempts[1] = replace(history.attempts[1], started=45, finished=50)
    assert judge(history).problems == []
    assert figures(history)["resumed after, longest s"] == 25.0


def test_poison_is_believed_when_three_workers_were_taken() -> None:
    history = good()
    lost = [
        AttemptRow(tenant="a", task="k1", number=number, pid=20 + number, started=4, finished=4.5, outcome="lost")
        for number in (3, 4)
    ]
    history.attempts += lost
    history.faults += [Fault(at=4.2, kind="kill", pid=23), Fault(at=0, kind="armed", pid=24)]
    history.redriven = ["k1"]
    assert not [problem for problem in judge(history).problems if problem.startswith("poison")]


def test_a_history_comes_back_from_its_file() -> None:
    assert msgspec.json.decode(msgspec.json.encode(good()), type=History) == good()
