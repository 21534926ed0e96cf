"""What a query asks for besides its meaning."""

from uuid import uuid4

import pytest

from internal.entities.parsed import Location
from internal.entities.search import SearchHit
from internal.services.understanding import Day, Wanted, better, dates, flat, in_notations, in_tiers, meant, understand


@pytest.mark.parametrize(
    ("query", "phrases"),
    [
        ('what is the "refund period"?', ("refund period",)),
        ("“退款期限”是多久", ("退款期限",)),
        ("「退款」和『期限』", ("退款", "期限")),
        ('"a b" "a b" "c d"', ("a b", "c d")),
        ('5" pipes and 7" pipes', (" pipes and 7".strip(),)),
        ('an open "quotation', ()),
        ('"?!"', ()),
        ('"report.pdf"', ()),
        ("it's the users' own", ()),
    ],
)
def test_words_in_quotation_marks_are_phrases(query: str, phrases: tuple[str, ...]) -> None:
    assert understand(query).phrases == phrases


def test_no_more_is_taken_than_a_search_can_look_for() -> None:
    wanted = understand(" ".join(f'"phrase {number}" 《title {number}》 {number}.pdf' for number in range(50)))
    assert (len(wanted.phrases), len(wanted.titles), len(wanted.files)) == (4, 4, 4)
    assert all(len(words) <= 200 for words in wanted.files)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("what does Annual Report 2023.pdf say?", {"annual report 2023.PDF"}),
        ("what does report 2023.pdf say?", {"2023.pdf"}),
        ("compare annual report 2023.pdf with staff.docx", {"annual report 2023.PDF", "staff.docx"}),
        ("请总结员工手册2024.pdf的要点", {"员工手册2024.pdf"}),
        ("请总结员工手册２０２４.ｐｄｆ的要点", {"员工手册2024.pdf"}),
        ("what does report.docx say?", set[str]()),
        ("what does bigstaff.docx say?", set[str]()),
        ("《员工手册》里的年假", {"员工手册2024.pdf", "公司员工手册 第三版.docx"}),
        ("《劳动合同法》里的年假", set[str]()),
        ("how does Node.js do it", set[str]()),
    ],
)
def test_a_file_is_known_by_its_name(query: str, found: set[str]) -> None:
    files = ("annual report 2023.PDF", "2023.pdf", "3.pdf", "staff.docx", "node.js")
    files += ("员工手册2024.pdf", "公司员工手册 第三版.docx")
    known = {uuid4(): name for name in files}
    assert {known[document] for document in meant(understand(query), known)} == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("on 2024-03-05", [Day(2024, 3, 5)]),
        ("on 2024/3/5, 2024.03.06", [Day(2024, 3, 5), Day(2024, 3, 6)]),
        ("2024年3月5日的会议", [Day(2024, 3, 5)]),
        ("二〇二四年三月五日", [Day(2024, 3, 5)]),
        ("二零二四年十二月三十一号", [Day(2024, 12, 31)]),
        ("2024 年 10 月", [Day(2024, 10)]),
        ("March 5, 2024", [Day(2024, 3, 5)]),
        ("the 5th of March 2024", [Day(2024, 3, 5)]),
        ("5 Mar. 2024", [Day(2024, 3, 5)]),
        ("in Sept 2024", [Day(2024, 9)]),
        ("sales of 2024-03", [Day(2024, 3)]),
        ("05/03/2024", []),
        ("2024-02-30", []),
        ("2024-13", []),
        ("version 2024.1 of 192.168.2024.1.1", []),
        ("call 555-2024-03-05-77", []),
        ("二二二二年", []),
        ("十十十十年十月", []),
        ("it may 2024", [Day(2024, 5)]),
        ("nothing", []),
    ],
)
def test_days_are_read_in_every_notation(text: str, found: list[Day]) -> None:
    assert dates(text) == found


def test_what_is_written_for_a_day_is_read_as_that_day() -> None:
    for day in (Day(2024, 3, 5), Day(1999, 12, 31), Day(2031, 7)):
        assert [dates(form) for form in day.written] == [[day]] * 3
        assert all(day.covers(other) for form in day.written for other in dates(form))
    assert Day(2024, 3).covers(Day(2024, 3, 5))
    assert not Day(2024, 3, 5).covers(Day(2024, 3))


def test_a_date_is_asked_for_in_each_notation_with_the_rest_of_the_query() -> None:
    query = "who spoke on March 5, 2024 in Bergen"
    assert in_notations(query, understand(query)) == [
        "who spoke on in Bergen 2024年3月5日",
        "who spoke on in Bergen 2024-03-05",
        "who spoke on in Bergen March 5, 2024",
    ]


def test_a_phrase_stands_in_a_text_whatever_its_form() -> None:
    assert flat("退还全部預付款") in flat("供应商须“退还，全部 预付款”。")
    assert flat("ＡＢＣ Def") in flat("the abc-def")
    assert flat("art") not in flat("a party")
    assert flat("?!") == ""


def hit(text: str, score: float) -> SearchHit:
    return SearchHit(
        chunk_id=uuid4(),
        document_id=uuid4(),
        filename="f.txt",
        source_type="document",
        text=text,
        score=score,
        location=Location(),
    )


def test_hits_come_in_tiers_with_scores_that_fall() -> None:
    first, second, third = hit("about refunds", 0.9), hit("the refund period", 0.5), hit("of another file", 0.4)
    extra, useless = hit("a refund period, too", 7.0), hit("nothing", 9.0)
    wanted = Wanted(phrases=("refund period",))
    found = in_tiers(wanted, [first, second, third], [[extra, useless, second]], frozenset({third.document_id}))
    assert [item.text for item in found] == [second.text, third.text, extra.text, first.text]
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] < scores[0] <= 1


def test_without_anything_asked_for_hits_stay_as_they_are() -> None:
    hits = [hit("one", 0.9), hit("two", 0.1)]
    assert in_tiers(Wanted(phrases=("absent",)), hits, [[hit("three", 1.0)]], frozenset()) == hits
    assert in_tiers(Wanted(phrases=("absent",)), [], [], frozenset()) == []


def test_scores_of_words_keep_their_order() -> None:
    hits = [hit("a b", 9.0), hit("a b c", 3.0), hit("c", 2.0)]
    found = in_tiers(Wanted(phrases=("a b",)), hits, [], frozenset())
    assert [item.text for item in found] == ["a b", "a b c", "c"]
    assert [item.score for item in found] == pytest.approx([1.0, 2 / 3, 1 / 9])


def test_of_two_wordings_the_better_counts() -> None:
    one = hit("one", 0.4)
    again = SearchHit(**{name: getattr(one, name) for name in one.__struct_fields__} | {"score": 0.8})
    two = hit("two", 0.6)
    assert better([two, one], [again]) == [again, two]


def test_hits_of_other_words_alone_are_put_in_tiers_too() -> None:
    (found,) = in_tiers(understand('"red door"'), [], [[hit("A red door.", 1.0)]], frozenset())
    assert found.text == "A red door."
