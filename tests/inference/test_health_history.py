from inference.health_history import KEPT, HealthHistory, HistoryCollector, Observation


class World:
    def __init__(self):
        self.now = 100.0
        self.states = {}
        self.history = HealthHistory(
            lambda: {key: Observation(*value) for key, value in self.states.items()},
            lambda: self.now,
            lambda: 1_000_000.0 + self.now,
        )

    def see(self, seconds, **states):
        self.now += seconds
        self.states.update({("m", layer): value for layer, value in states.items()})
        self.history.observe()


def test_changes_are_counted_kept_and_timed():
    world = World()
    world.see(0, canary=("unknown", ""), device=("ok", ""))
    world.see(5, canary=("ok", ""))
    world.see(1)
    world.see(2, canary=("failing", "wrong answer"))
    world.see(4)
    assert world.history.counts == {("m", "canary", "ok"): 1, ("m", "canary", "failing"): 1}
    newest, oldest = world.history.recent()
    assert (newest["before"], newest["after"], newest["reason"]) == (
        "ok", "failing", "wrong answer",
    )  # fmt: skip
    assert (newest["lasted_seconds"], oldest["lasted_seconds"]) == (3.0, 5.0)
    assert newest["at_seconds"] == 1_000_108.0
    assert world.history.seconds_in_state() == {
        ("m", "canary", "failing"): 4.0, ("m", "device", "ok"): 12.0,
    }  # fmt: skip
    text = {family.name for family in HistoryCollector(world.history).collect()}
    assert text == {"health_transitions", "health_state_seconds"}


def test_a_flapping_layer_does_not_fill_the_memory():
    world = World()
    for number in range(1000):
        world.see(1, canary=(str(number % 2), ""))
    assert len(world.history.recent()) == KEPT
    assert sum(world.history.counts.values()) == 999
