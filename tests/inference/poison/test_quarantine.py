import json

import pytest

from inference.errors import EngineFailedError, QuarantinedError
from inference.poison.quarantine import QUARANTINE_FILE, Quarantine


class World:
    def __init__(self, folder, max_entries=3):
        self.now = 1_000_000.0
        self.folder = folder
        self.max_entries = max_entries
        self.restart()

    def restart(self):
        self.quarantine = Quarantine(
            self.folder,
            max_entries=self.max_entries,
            quarantine_seconds=3600.0,
            suspicion_seconds=60.0,
            wall_clock=lambda: self.now,
        )

    def print_of(self, text, version=1, model="m"):
        return self.quarantine.fingerprint(model, version, ("chat", text, 64))


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_fingerprint_differs_in_everything_that_the_engine_sees(world):
    prints = {
        world.print_of("a"), world.print_of("b"), world.print_of("a", version=2),
        world.print_of("a", model="n"), world.quarantine.fingerprint("m", 1, ("cha", "ta", 64)),
        world.quarantine.fingerprint("m", 1, ("chat", b"a", 64)),
    }  # fmt: skip
    assert len(prints) == 6
    assert world.print_of("a") == world.print_of("a")


def test_a_suspect_is_refused_with_503_until_it_is_cleared_or_time_passes(world):
    one, other = world.print_of("one"), world.print_of("other")
    world.quarantine.suspend([one, other], "crash")
    for suspect in (one, other):
        with pytest.raises(EngineFailedError) as refused:
            world.quarantine.check(suspect)
        assert (refused.value.status, refused.value.reason) == (503, "suspected")
        assert refused.value.retry_after_seconds >= 1
    world.quarantine.check(world.print_of("a third"))
    world.quarantine.clear([one])
    world.quarantine.check(one)
    assert world.quarantine.suspects() == 1
    world.now += 60
    world.quarantine.check(other)
    assert world.quarantine.empty


def test_a_culprit_is_refused_with_422_also_after_a_restart_until_it_expires(world):
    culprit = world.print_of("poison")
    world.quarantine.suspend([culprit], "hang")
    world.quarantine.condemn("m", 1, [culprit], "hang")
    for _ in range(2):
        with pytest.raises(QuarantinedError, match="hang") as refused:
            world.quarantine.check(culprit)
        assert (refused.value.status, refused.value.reason) == (422, "quarantined")
        world.restart()
        assert culprit == world.print_of("poison"), "the key is kept"
    world.now += 3600
    world.quarantine.check(culprit)
    assert world.quarantine.empty
    world.restart()
    assert world.quarantine.empty


def test_the_file_is_private_and_holds_no_text(world, tmp_path):
    world.quarantine.condemn("m", 1, [world.print_of("my secret")], "crash")
    path = tmp_path / QUARANTINE_FILE
    assert "secret" not in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_number_of_culprits_and_suspects_is_bounded_and_those_in_use_stay(world):
    prints = [world.print_of(str(number)) for number in range(4)]
    for culprit in prints[:3]:
        world.quarantine.condemn("m", 1, [culprit], "crash")
    with pytest.raises(QuarantinedError):
        world.quarantine.check(prints[0])
    world.quarantine.condemn("m", 1, [prints[3]], "crash")
    kept = {item.fingerprint for item in world.quarantine.culprits()}
    assert kept == {prints[0], prints[2], prints[3]}
    world.quarantine.suspend(map(str, range(100)), "crash")
    assert world.quarantine.suspects() == 3


def test_another_version_of_the_model_gets_its_own_chance(world):
    world.quarantine.condemn("m", 1, [world.print_of("a")], "crash")
    world.quarantine.condemn("n", 1, [world.print_of("a", model="n")], "crash")
    world.quarantine.version_changed("m", 2)
    assert [item.model for item in world.quarantine.culprits()] == ["n"]
    world.restart()
    assert [item.model for item in world.quarantine.culprits()] == ["n"]


def test_an_administrator_can_forget_everything(world):
    world.quarantine.condemn("m", 1, [world.print_of("a"), world.print_of("b")], "crash")
    assert [item.group for item in world.quarantine.culprits()] == [2, 2]
    assert world.quarantine.forget_all() == 2
    world.quarantine.check(world.print_of("a"))


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 1, "key": "zz"}'])
def test_a_damaged_file_is_no_reason_not_to_start(tmp_path, text):
    (tmp_path / QUARANTINE_FILE).write_text(text, encoding="utf-8")
    world = World(tmp_path)
    assert world.quarantine.empty
    world.quarantine.condemn("m", 1, [world.print_of("a")], "crash")
    table = json.loads((tmp_path / QUARANTINE_FILE).read_text(encoding="utf-8"))
    assert len(table["quarantined"]) == 1
