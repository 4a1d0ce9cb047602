import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.consistency import SELF, PeerWatch, Question, Vote, compare_replicas, count, same


def test_two_that_differ_accuse_nobody():
    vote = count({"a": "yes", "b": "no"})
    assert not vote.agreed
    assert vote.outvoted == ()


def test_a_majority_names_who_differs():
    vote = count({"a": "yes", "b": "no", "c": "yes", "d": None})
    assert vote == Vote((("a", "c"), ("b",)), ("d",))
    assert vote.outvoted == ("b",)


@pytest.mark.parametrize("answers", ["ab", "abc", "aabb", "aabbc"])
def test_without_a_majority_nobody_is_outvoted(answers):
    assert count(dict(enumerate(answers))).outvoted == ()


def test_the_silent_have_no_vote_and_all_silent_is_no_disagreement():
    vote = count({"a": None, "b": None})
    assert (vote.agreed, vote.camps, vote.silent) == (True, (), ("a", "b"))


@pytest.mark.parametrize(
    ("one", "other", "tolerance", "agree"),
    [
        ({"y": [1.0, 2.0]}, {"y": [1.0, 2.0005]}, 1e-3, True),
        ({"y": [1.0, 2.0]}, {"y": [1.0, 2.1]}, 1e-3, False),
        ({"y": [1.0]}, {"y": [1.0, 1.0]}, 1e-3, False),
        ({"y": [1.0]}, {"z": [1.0]}, 1e-3, False),
        ({"y": [1e6]}, {"y": [1e6 + 100]}, 1e-3, True),
        ({"y": ["a"]}, {"y": ["a"]}, 0.0, True),
        ({"y": ["a"]}, {"y": ["b"]}, 0.0, False),
        ({"y": [1]}, "1", 0.0, False),
        ("a", "a", 0.0, True),
        ("a", "a ", 0.0, False),
    ],
)
def test_answers_are_compared_by_value(one, other, tolerance, agree):
    assert same(one, other, tolerance) is agree


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=9))
def test_votes_add_up_and_only_a_true_majority_accuses(answers):
    vote = count(dict(enumerate(answers)))
    spoken = [answer for answer in answers if answer is not None]
    assert sum(map(len, vote.camps)) == len(spoken)
    assert sum(map(len, vote.camps)) + len(vote.silent) == len(answers)
    if vote.outvoted:
        winner = max(spoken.count(answer) for answer in spoken)
        assert winner >= 2
        assert 2 * winner > len(spoken)
        assert len(vote.outvoted) == len(spoken) - winner


class World:
    """A watch whose peers answer from a table."""

    def __init__(self, *peers):
        self.now = 100.0
        self.said = {SELF: "right", **dict.fromkeys(peers, "right")}
        self.watch = PeerWatch(
            peers, self.own, lambda: [Question("m", "hi")], 5.0, 2, lambda: self.now
        )

    async def own(self, _question):
        return self.said[SELF]

    def answer(self, request):
        said = self.said[f"http://{request.url.host}"]
        if said is None:
            raise httpx.ConnectTimeout("nobody there")
        return httpx.Response(200, json={"choices": [{"text": said}]})

    def check(self, times=1):
        async def run():
            async with httpx.AsyncClient(transport=httpx.MockTransport(self.answer)) as client:
                for _ in range(times):
                    await self.watch.check(client)

        asyncio.run(run())


def test_one_peer_that_differs_is_told_and_takes_nobody_out():
    world = World("http://a")
    world.said["http://a"] = "wrong"
    world.check(5)
    assert world.watch.disagreements == {"http://a": 5}
    assert world.watch.outvoted == ""
    assert world.watch.describe()["disagreements"] == 1


def test_a_replica_against_which_a_majority_stands_often_takes_itself_out():
    world = World("http://a", "http://b")
    world.said[SELF] = "wrong"
    world.check()
    assert world.watch.outvoted == "", "once may be a version that is being rolled out"
    world.check()
    assert "majority" in world.watch.outvoted
    assert world.watch.describe()["outvoted"] == [SELF]
    world.said[SELF] = "right"
    world.check()
    assert world.watch.outvoted == ""


def test_a_peer_that_is_down_is_silent():
    world = World("http://a", "http://b")
    world.said["http://b"] = None
    world.check()
    found = world.watch.describe()
    assert (found["silent"], found["disagreements"]) == (["http://b"], 0)


@pytest.mark.integration
def test_live_replicas_agree_until_one_computes_nonsense(tools, repository, tmp_path):
    settings = {"canary_interval_seconds": 600.0, "canary_requests_per_second": 1000.0}
    with (
        tools.run_service(repository, tmp_path / "a", **settings) as one,
        tools.run_service(
            repository, tmp_path / "b", peers=(one.url,), peer_interval_seconds=0.1, **settings
        ) as other,
    ):
        questions = [Question("tiny", text) for text in ("hello", "how are you", "so bad")]

        def votes():
            async def run():
                async with httpx.AsyncClient(timeout=10.0) as client:
                    return await compare_replicas(client, [one.url, other.url], questions)

            return asyncio.run(run())

        assert [vote.agreed for vote in votes()] == [True] * 3
        consistency = lambda: other.client.get("/health?verbose=true").json()["consistency"]  # noqa: E731
        tools.eventually(lambda: consistency()["questions"] == 2, "a comparison")
        assert consistency()["disagreements"] == 0
        one.fault("corrupt_output", kind="wrong")
        assert [vote.agreed for vote in votes()] == [False] * 3
        tools.eventually(lambda: consistency()["disagreements"] > 0, "a disagreement")
        assert other.metric("replica_disagreements_total") > 0
        assert other.client.get("/health/ready").status_code == 200
