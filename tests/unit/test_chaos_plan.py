"""A seed is a schedule: the same one each time, another one for another seed, and as much as was asked for."""

from collections import Counter

from pkg.failpoints import PLACES, parse
from tests.chaos import corpus, plan


def test_a_seed_replays_its_schedule() -> None:
    files = corpus.make(7, 30)
    assert corpus.make(7, 30) == files
    assert plan.steps(7, plan.SHORT) == plan.steps(7, plan.SHORT) != plan.steps(8, plan.SHORT)
    assert plan.scripts(7, plan.SHORT, files) == plan.scripts(7, plan.SHORT, files)


def test_files_come_by_every_way_and_each_once() -> None:
    files = corpus.make(7, 100)
    scripts = plan.scripts(7, plan.SHORT, files)
    come = Counter((each.tenant, each.file.name) for script in scripts for each in script.files())
    assert set(come.values()) == {1}
    assert {(tenant, file.name) for file in files for tenant in file.tenants} < come.keys()
    for way in ("packed", "in_pieces", "twice", "delete_after", "again_after", "replacement", "restore_after"):
        assert 0 < sum(bool(getattr(script, way)) for script in scripts) < len(scripts) / 2, way
    assert all(file.texts for script in scripts for file in script.packed)
    wanted = [wanted for script in scripts for wanted in script.wanted("t")]
    assert len(wanted) == len(come)
    assert sum(bool(one.replaces) for one in wanted) == sum(script.replacement is not None for script in scripts)


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
