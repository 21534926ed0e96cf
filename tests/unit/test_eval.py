"""The table of an evaluation, and the sets that a folder holds."""

from pathlib import Path

from tests.eval import retrieval
from tests.eval.__main__ import known
from tests.eval.table import HEAD, Score, keep, lines, read

BETTER = Score(set="one", metric="ndcg@10", value=0.7351, count=10, bm25=0.5, goal=0.735)
WORSE = Score(set="two", metric="refused, answerable", value=0.2, count=5, goal=0.1, at_most=True)
BROKEN = Score(set="three", metric="-", failed="RuntimeError: away")


def test_a_verdict_is_that_of_what_is_printed() -> None:
    assert BETTER.met is True
    assert WORSE.met is False
    assert BROKEN.met is None
    assert Score(set="a", metric="b", value=0.7346, goal=0.735).met is True
    assert Score(set="a", metric="b", value=0.7344, goal=0.735).met is False


def test_the_table_tells_the_change_since_the_last_run(tmp_path: Path) -> None:
    kept = tmp_path / "deep" / "last.json"
    assert read(kept) == []
    keep(kept, [BETTER, WORSE, BROKEN], [])
    now = [Score(set="one", metric="ndcg@10", value=0.7, count=10, bm25=0.5, goal=0.735), BROKEN]
    head, first, second = lines(now, read(kept))
    assert head == HEAD
    assert first.split() == ["one", "ndcg@10", "10", "0.700", "0.500", "≥", "0.735", "MISSED", "0.735", "-0.035"]
    assert second.endswith("FAILED: RuntimeError: away")
    keep(kept, now, read(kept))
    assert {(score.set, score.value) for score in read(kept)} == {("one", 0.7), ("two", 0.2), ("three", 0.0)}
    assert kept.with_suffix(".txt").read_text().splitlines()[1] == first


def test_a_torn_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "last.json").write_text('{"began": ')
    assert read(tmp_path / "last.json") == []


def test_a_folder_of_the_right_form_is_a_set(tmp_path: Path) -> None:
    for name, files in (("mine", retrieval.FILES), ("half", retrieval.FILES[:2])):
        folder = tmp_path / "retrieval" / name
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_text("")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "locomo_public.json").write_text("[]")
    assert retrieval.sets(tmp_path) == ["mine"]
    assert list(known(tmp_path)) == ["mine", "locomo"]
    assert known(tmp_path / "nowhere") == {}
