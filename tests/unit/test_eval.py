"""The table of an evaluation, and the sets that a folder holds."""

from pathlib import Path

from tests.eval import retrieval
from tests.eval.__main__ import known
from tests.eval.reading import plain
from tests.eval.reports import pages_of, texts_of_pages
from tests.eval.table import HEAD, Score, keep, lines, mean, read

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
    shown = kept.with_suffix(".md").read_text().splitlines()
    assert shown[:3] == ["```", head, first]
    assert shown[-4:-1] == ["", "Of earlier runs:", lines([WORSE], [])[1]]


def test_a_part_of_a_set_is_not_compared_with_all_of_it(tmp_path: Path) -> None:
    kept, part = tmp_path / "last.json", Score(set="one", metric="ndcg@10", value=0.9, count=2)
    keep(kept, [BETTER], [])
    assert "0.735" not in lines([part], read(kept))[1]
    keep(kept, [part], read(kept))
    assert {(score.value, score.count) for score in read(kept)} == {(0.7351, 10), (0.9, 2)}


def test_a_failure_is_not_kept_beyond_the_next_run(tmp_path: Path) -> None:
    kept = tmp_path / "last.json"
    keep(kept, [BETTER, BROKEN], [])
    keep(kept, [WORSE], read(kept))
    assert [score.set for score in read(kept)] == ["two", "one"]


def test_the_mean_of_nothing_is_no_figure() -> None:
    assert mean("a", "b", []) == []
    assert mean("a", "b", [1.0, 0.0], goal=0.4) == [Score(set="a", metric="b", value=0.5, count=2, goal=0.4)]


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


def test_a_passage_stands_on_each_page_that_it_touches() -> None:
    def part(start: int, page: int) -> dict[str, object]:
        return {"start": start, "location": {"page": page}}

    chunks = [
        {"text": "one and two", "parts": [part(0, 1), part(8, 2)]},
        {"text": "more of two", "parts": [part(0, 2)]},
    ]
    assert [pages_of(chunk) for chunk in chunks] == [{1, 2}, {2}]
    assert texts_of_pages(chunks) == {1: "one and ", 2: "two\nmore of two"}


def test_what_a_reader_does_not_see_is_not_wanted() -> None:
    marked = "<!-- image\n -->A [word](https://example.com/some) &amp; ![a duck](data:abc) more"
    assert " ".join(plain(marked).split()) == "A [word & more"
