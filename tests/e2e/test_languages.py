"""One tenant, two languages: a question finds its answer in the other one, past what its own says of other things."""

import httpx
import pytest

from tests.e2e.product import finished, upload

CHINESE = {
    "会议室.txt": "会议室位于三楼，使用前请在前台登记并提前一天预约。",
    "食堂.txt": "食堂每天中午十一点半开放，员工凭工卡就餐。",
    "班车.txt": "班车早上七点半从地铁站出发，晚上六点返回。",
    "打印机.txt": "打印机卡纸时先打开侧盖，取出纸张后再重新启动。",
    "迟到.txt": "员工迟到三次以上，当月的全勤奖将被取消。",
}
ENGLISH = {
    "lease.txt": "The deposit equals two monthly rents and is paid back within six weeks after the keys were returned.",
    "parking.txt": "Visitors park on the second level and show their ticket at the reception desk.",
    "lifts.txt": "In case of fire do not use the lifts; leave the building by the stairs.",
    "garden.txt": "The garden behind the house is watered every evening between May and September.",
    "internet.txt": "Guests receive a password for the wireless network that is valid for one day.",
}


@pytest.fixture
def both(client: httpx.Client) -> httpx.Client:
    """Reads every file first, so that the question meets all of them."""
    tasks = [upload(client, name, text.encode())["task_id"] for name, text in (CHINESE | ENGLISH).items()]
    for task in tasks:
        assert finished(client, task)["status"] == "succeeded"
    return client


@pytest.mark.parametrize("mode", ["hybrid", "vector"])
@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("押金什么时候退还？", "lease.txt"),
        ("访客应该把车停在哪里？", "parking.txt"),
        ("How do I book a meeting room?", "会议室.txt"),
        ("When does the shuttle bus leave?", "班车.txt"),
        ("食堂几点开门？", "食堂.txt"),
        ("What should I do in case of fire?", "lifts.txt"),
    ],
)
def test_a_question_finds_its_answer_in_either_language(
    both: httpx.Client, mode: str, question: str, first: str
) -> None:
    answer = both.post("/api/v1/search", json={"query": question, "mode": mode})
    found = [item["filename"] for item in answer.json()["items"]]
    assert first in found[:2], found
