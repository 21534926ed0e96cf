"""Queries with quotation marks, names of files and dates, on a real database."""

from collections.abc import AsyncGenerator

import pytest

from internal.entities.search import Filters, SearchMode, SearchRequest
from internal.providers.embeddings import OpenAIEmbeddings
from internal.services.embedder import Embedder
from internal.services.search import SearchService
from internal.services.terms import TermAnalyser
from pkg.ctxutil import Context
from pkg.sections import Ai
from tests.fakes.openai_server import running_fake
from tests.library import SPACE, Library
from tests.servers import Database

MODES = list(SearchMode)
WITH_WORDS = [SearchMode.HYBRID, SearchMode.KEYWORD]


@pytest.fixture(scope="module")
async def library(module_database: Database) -> AsyncGenerator[Library]:
    opened = await Library.open(module_database)
    yield opened
    await opened.close()


@pytest.fixture
async def service(library: Library) -> AsyncGenerator[SearchService]:
    async with running_fake(dimension=SPACE.dim) as fake:
        provider = OpenAIEmbeddings(Ai(base_url=fake.base_url, embedding_model=SPACE.model), SPACE)
        yield SearchService(library.app, Embedder(provider), TermAnalyser())
        await provider.close()


async def texts(service: SearchService, ctx: Context, query: str, mode: SearchMode, k: int = 5) -> list[str]:
    found = (await service.search(ctx, SearchRequest(query=query, mode=mode, k=k))).items
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    return [hit.text for hit in found]


@pytest.mark.parametrize("mode", MODES)
async def test_what_holds_the_quoted_words_comes_first(
    service: SearchService, library: Library, mode: SearchMode
) -> None:
    """However many others have each of the words, and the rest of the question as well."""
    ctx = await library.tenant()
    near = [f"who pays a refund in a period of notice {number}: refund, for a period" for number in range(120)]
    filler = " ".join(f"word{number}" for number in range(300))
    wanted = f"{filler} the Refund-Period is meant {filler}"
    await library.add(ctx, [*near, wanted])
    found = await texts(service, ctx, 'who pays in the "refund period" of notice', mode)
    assert found[0] == wanted
    assert len(found) == 5


@pytest.mark.parametrize("mode", MODES)
async def test_a_quoted_chinese_phrase_in_other_characters(
    service: SearchService, library: Library, mode: SearchMode
) -> None:
    ctx = await library.tenant()
    near = [f"款项退还，期限第{number}条：退款的期限，还款预付" for number in range(120)]
    wanted = "合同约定之事宜均按本条办理。" * 20 + "供应商应退还预付款。"
    await library.add(ctx, [*near, wanted])
    assert (await texts(service, ctx, "期限内“退還預付款”的条款", mode))[0] == wanted


@pytest.mark.parametrize("mode", MODES)
async def test_the_named_file_comes_first(service: SearchService, library: Library, mode: SearchMode) -> None:
    ctx = await library.tenant()
    await library.add(ctx, [f"vacation days of year {number}" for number in range(120)], name="other.txt")
    await library.add(ctx, ["days in this one", "days in that"], name="Staff Handbook.PDF")
    await library.add(ctx, ["days in a third"], name="员工手册（2024）.docx")
    english = await texts(service, ctx, "vacation days in staff handbook.pdf", mode)
    assert set(english[:2]) == {"days in this one", "days in that"}
    assert len(english) == 5
    assert (await texts(service, ctx, "《员工手册》 vacation days", mode))[0] == "days in a third"
    assert (await texts(service, ctx, "《员工手册（2024）》 vacation days", mode))[0] == "days in a third"


async def test_a_private_or_foreign_file_is_no_name(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    other = await library.member(ctx.tenant_id)
    await library.add(ctx, ["vacation days"], name="plan.txt")
    await library.add(other, ["secret days"], name="secret.txt", visibility="private")
    await library.add(await library.tenant(), ["secret days of others"], name="secret.txt")
    for query in ("vacation secret.txt", "《secret》 vacation"):
        assert await texts(service, ctx, query, SearchMode.HYBRID) == ["vacation days"]
        assert (await texts(service, other, query, SearchMode.HYBRID))[0] == "secret days"


async def test_a_name_looks_no_further_than_the_filter(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    allowed = await library.add(ctx, ["vacation days"], name="plan.txt")
    await library.add(ctx, ["other days"], name="secret.txt", tags=["hidden"])
    for filters in (Filters(document_ids=[allowed.document]),):
        request = SearchRequest(query='secret.txt "other days"', filters=filters)
        assert [hit.text for hit in (await service.search(ctx, request)).items] == ["vacation days"]


async def test_a_word_that_stands_in_many_names_is_none(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    for number in range(50):
        await library.add(ctx, [f"text {number}"], name=f"合同{number}.docx")
    await library.add(ctx, ["vacation days"], name="plan.txt")
    assert (await texts(service, ctx, "《合同》 vacation days", SearchMode.HYBRID))[0] == "vacation days"


@pytest.mark.parametrize("mode", WITH_WORDS)
@pytest.mark.parametrize(
    "query",
    ["decision of March 17, 2024", "decision of 2024-03-17", "decision of 17th March 2024", "2024年3月17日 decision"],
)
async def test_a_day_is_found_in_other_notations(
    service: SearchService, library: Library, mode: SearchMode, query: str
) -> None:
    ctx = await library.tenant()
    for form in ("decision, 2024-{0:02}-{1:02}: budget", "decision {0}/{1} budget 2024年{0}月{1}日"):
        minutes = [form.format(month, day) for month in range(1, 5) for day in range(1, 29)]
        await library.add(ctx, minutes, name=f"{form[:9]}.txt")
    found = await texts(service, ctx, query, mode)
    assert set(found[:2]) == {"decision, 2024-03-17: budget", "decision 3/17 budget 2024年3月17日"}


async def test_a_month_is_found_by_its_days(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, [f"sales on 2024-{month:02}-09 were fine" for month in range(1, 13)])
    assert (await texts(service, ctx, "sales of 2024年7月", SearchMode.HYBRID))[0] == "sales on 2024-07-09 were fine"


async def test_signs_of_patterns_in_a_name_are_letters(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["vacation days"], name="plan.txt")
    for query in ("《%》 days", "《_____》 days", "%.txt days", r"《\》 days", "《'; drop table documents; --》 days"):
        assert await texts(service, ctx, query, SearchMode.HYBRID) == ["vacation days"]
