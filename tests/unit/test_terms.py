"""Analysis of texts and queries into terms."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.entities.search import TERM_SPACE
from internal.services.terms import MOST_QUERY_TERMS, MOST_TERMS, TermAnalyser, fold

TENANT, OTHER, CHUNK = (UUID(int=n) for n in (1, 2, 3))
ANALYSER = TermAnalyser()


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The runners were running", ["runner", "run"]),
        ("the patients' studies, a study", ["patient", "studi", "studi"]),
        ("Café Zürich naïve", ["cafe", "zurich", "naiv"]),
        ("ＡＢＣ１２３ ｶﾞ", ["abc123", "ガ"]),
        ("don’t", ["don't"]),
        ("GPT-4 and HTTP/2", ["gpt", "4", "http", "2"]),
        ("日本的", ["日", "本", "的", "日本", "本的"]),
        ("用Python写", ["用", "python", "写"]),
        ("한국어", ["한", "국", "어", "한국", "국어"]),
        ("привет Мир", ["привет", "мир"]),
        ("what is it?", []),
        ("", []),
        ("?!…——、。", []),
        ("_snake_case_", ["snake", "case"]),
        ("資料庫", ["资", "料", "库", "资料", "料库"]),
        ("𠀾皇后在後面", ["𠀾", "皇", "后", "在", "后", "面", "𠀾皇", "皇后", "后在", "在后", "后面"]),
        ("2,450 of 1,234,567.89", ["2450", "1234567", "2", "450", "1", "234", "567", "89"]),
        ("共２，４５０，其中", ["2450", "共", "2", "450", "其", "中", "其中"]),
        ("1,2,3 and 10,2000", ["1", "2", "3", "10", "2000"]),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert ANALYSER.terms(text) == terms


def test_traditional_and_simplified_find_each_other() -> None:
    traditional, simplified = "臺灣的資料庫發展與圖書館網絡", "台湾的资料库发展与图书馆网络"
    assert ANALYSER.terms(traditional) == ANALYSER.terms(simplified)
    assert ANALYSER.terms("ＰｏｓｔｇｒｅＳＱＬ 的行級安全") == ANALYSER.terms("PostgreSQL的行级安全")


def test_every_substring_of_a_chinese_sentence_shares_all_its_terms() -> None:
    sentence = "供应商须在三十天内退还全部预付款"
    whole = set(ANALYSER.terms(sentence))
    for start in range(len(sentence) - 2):
        for end in range(start + 2, len(sentence) + 1):
            assert set(ANALYSER.terms(sentence[start:end])) <= whole


def test_numbers_belong_to_the_tenant() -> None:
    mine = ANALYSER.passage(TENANT, CHUNK, "supplier contract 供应商")
    theirs = ANALYSER.passage(OTHER, CHUNK, "supplier contract 供应商")
    assert not set(mine.terms) & set(theirs.terms)
    assert mine == ANALYSER.passage(TENANT, CHUNK, "supplier contract 供应商")
    assert set(ANALYSER.query(TENANT, "contracts of suppliers").terms) <= set(mine.terms)


def test_counts_and_length() -> None:
    found = ANALYSER.passage(TENANT, CHUNK, "cats cat dog")
    assert sorted(found.counts) == [1, 2]
    assert found.length == 3
    assert found.terms == sorted(found.terms)


def test_bounds_keep_the_most_frequent() -> None:
    frequent = " ".join(["pearl"] * 5)
    many = " ".join(f"w{n}" for n in range(MOST_TERMS + 50))
    found = ANALYSER.passage(TENANT, CHUNK, f"{many} {frequent}")
    assert len(found.terms) == MOST_TERMS
    assert max(found.counts) == 5
    assert len(ANALYSER.query(TENANT, many).terms) == MOST_QUERY_TERMS


@given(st.text(max_size=200))
def test_any_text_gives_numbers_in_range(text: str) -> None:
    found = ANALYSER.passage(TENANT, CHUNK, text)
    assert all(1 <= term <= TERM_SPACE for term in found.terms)
    assert found.length == sum(found.counts) == len(ANALYSER.terms(text))
    assert len(set(found.terms)) == len(found.terms)


@given(st.text(max_size=50))
def test_folding_twice_changes_nothing(text: str) -> None:
    once = fold(text)
    assert ANALYSER.terms(once) == ANALYSER.terms(fold(once))
