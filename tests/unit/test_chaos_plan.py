"""A seed is a schedule: the same one each time, another one for another seed, and as much as was asked for."""

from collections import Counter

from pkg.failpoints import PLACES, parse
from tests.chaos import corpus, plan


def test_a_seed_replays_its_schedule() -> None:
    files = corpus.make(7, 30)
    assert corpus.make(7, 30) == files
    assert plan.steps(7, plan.SHORT) == plan.steps(7, plan.SHORT) != plan.steps(8, plan.SHORT)
    assert plan.scripts(7, plan.SHORT, files) == plan.scripts(7, plan.SHORT, files)


def test_the_figures_are_kept() -> None:
    for scale in (plan.SHORT, plan.FULL, plan.scaled(plan.FULL, 4)):
        found = Counter(step.kind for step in plan.steps(3, scale))
        assert (found["kill"], found["pause"], found["flush"]) == (scale.kills, scale.pauses, scale.flushes)
        assert all(step.seconds > scale.lease_seconds for step in plan.steps(3, scale) if step.kind == "pause")
        assert max(step.at for step in plan.steps(3, scale)) < scale.seconds
    assert (plan.FULL.kills, plan.FULL.pauses, plan.FULL.files, plan.FULL.flushes) == (1000, 200, 2000, 20)


def test_files_have_a_known_end_and_texts_of_their_own() -> None:
    files = corpus.make(5, 60)
    texts = Counter(text for file in files for text in file.texts)
    assert set(texts.values()) == {1}
    assert {bool(file.texts) + bool(file.refused) + bool(file.failed) for file in files} == {1}
    assert max(len(file.texts) for file in files) > 4 > min(len(file.texts) for file in files if file.texts)
    assert any(len(file.tenants) == 2 for file in files)


def test_failpoints_are_of_the_registry() -> None:
    armed = [plan.failpoints(seed, name, 1) for seed in range(200) for name in plan.PROCESSES]
    assert 0.2 < sum(map(bool, armed)) / len(armed) < 0.6
    for text in filter(None, armed):
        assert parse(text).keys() <= PLACES.keys()
