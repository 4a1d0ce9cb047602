from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.contract import Collection, CollectorError
from collectors.counter_history import CounterHistory
from collectors.entities import entity
from collectors.links import Link, Relation
from collectors.plan import wanted_names
from collectors.rates import CounterWindow
from collectors.reading import TargetReader
from collectors.settings import ReadingSettings
from collectors.signals import catalogue

NOW = 1_700_000_000.0


class Target:
    """A reader and the clocks that it is called with."""

    def __init__(self, labels: dict[str, str] | None = None, **settings: object) -> None:
        self.reader = TargetReader(labels or {}, ReadingSettings.model_validate(settings))
        self.at = 100.0

    def take(self, text: str, after: float = 15.0) -> Collection:
        self.at += after
        return self.reader.take(text, NOW + self.at, self.at)

    def values(self, text: str, after: float = 15.0) -> dict[tuple[str, str], float]:
        return {(s.entity, s.signal): s.value for s in self.take(text, after).samples}


GPU = 'gpu="1",UUID="GPU-aa",Hostname="box7"'


def test_a_dcgm_exporter_names_gpus_and_their_instances() -> None:
    target = Target({"instance": "10.0.0.7:9400"})
    collection = target.take(
        f"DCGM_FI_DEV_GPU_TEMP{{{GPU}}} 41\n"
        f"DCGM_FI_DEV_FB_USED{{{GPU}}} 2\n"
        f'DCGM_FI_DEV_FB_USED{{{GPU},GPU_I_ID="3",GPU_I_PROFILE="1g.5gb"}} 1\n'
    )
    assert target.reader.kinds == ("dcgm",)
    found = {(s.entity, s.signal): s for s in collection.samples}
    sample = found["host/box7/gpu/1", "gpu_temperature_celsius"]
    assert (sample.value, sample.time_seconds) == (41, NOW + 115)
    assert sample.labels == {"uuid": "GPU-aa", "exporter": "dcgm"}
    assert found["host/box7/gpu/1", "gpu_memory_used_bytes"].value == 2 * 1024**2
    mig = found["host/box7/gpu/1/mig/3", "gpu_memory_used_bytes"]
    assert (mig.value, mig.labels["mig_profile"]) == (1024**2, "1g.5gb")


def test_the_target_knows_better_than_a_pod_where_it_runs() -> None:
    target = Target({"instance": "10.0.0.7:9400", "node": "node3"})
    values = target.values(f"DCGM_FI_DEV_GPU_TEMP{{{GPU}}} 41\n")
    assert set(values) == {("host/node3/gpu/1", "gpu_temperature_celsius")}


def test_a_host_is_named_by_its_instance() -> None:
    target = Target({"instance": "box9:9100", "job": "nodes"})
    assert target.values("node_load1 3\nnode_load5 5\n") == {}
    values = target.values('node_load1 3\nnode_cpu_seconds_total{cpu="0",mode="idle"} 5\n')
    assert values["host/box9", "host_load"] == 3


@pytest.mark.parametrize(
    ("labels", "entity"),
    [
        ({"instance": "a:8000"}, "service/m/replica/a_8000"),
        ({"instance": "a:8000", "pod": "p-0"}, "service/m/replica/p-0"),
        ({"instance": "a:8000", "service": "chat"}, "service/chat"),
        ({"instance": "a:8000", "service": "chat", "replica": "2"}, "service/chat/replica/2"),
        ({}, "service/m"),
    ],
)
def test_a_replica_is_told_from_its_siblings(labels: dict[str, str], entity: str) -> None:
    values = Target(labels).values('vllm:num_requests_waiting{model_name="m"} 4\n')
    assert values == {(entity, "llm_queue_depth"): 4}


def test_rates_go_on_across_a_restart() -> None:
    target = Target()
    name = 'vllm:generation_tokens_total{model_name="m"}'
    seen = [target.values(f"{name} {count}\n") for count in (100, 250, 30, 30)]
    rates = [values.get(("service/m", "llm_tokens_per_second")) for values in seen]
    assert rates == [None, 10.0, 2.0, 0.0]


def test_a_scrape_that_failed_widens_the_step() -> None:
    target = Target()
    name = 'vllm:generation_tokens_total{model_name="m"}'
    target.take(f"{name} 0\n")
    with pytest.raises(CollectorError, match="line 1"):
        target.take("<html>\n")
    values = target.values(f"{name} 90\n")
    assert values["service/m", "llm_tokens_per_second"] == 3.0


def test_time_that_runs_backwards_gives_no_rate_and_says_so() -> None:
    target = Target()
    name = 'vllm:generation_tokens_total{model_name="m"}'
    target.take(f"{name} 0\n")
    back = target.take(f"{name} 900\n", after=-40)
    assert [s.signal for s in back.samples] == []
    assert any("did not go forward" in note for note in back.notes)
    assert target.values(f"{name} 915\n")["service/m", "llm_tokens_per_second"] == 1.0


def test_a_series_that_vanishes_is_absent_and_comes_back_without_a_leap() -> None:
    target = Target()
    tokens, other = 'vllm:generation_tokens_total{model_name="m"}', "vllm:num_requests_waiting 1\n"
    target.take(f"{tokens} 1000000\n{other}")
    assert ("service/m", "llm_tokens_per_second") not in target.values(other)
    values = target.values(f"{tokens} 1000030\n{other}")
    assert values["service/m", "llm_tokens_per_second"] == 2.0


def test_the_first_event_of_a_kind_counts_and_an_old_counter_does_not_leap() -> None:
    target = Target({"service": "s"})
    reason = "vllm:request_success_total{finished_reason="
    target.take(f'{reason}"stop"}} 100\n')
    values = target.values(f'{reason}"stop"}} 100\n{reason}"length"}} 30\n')
    assert values["service/s", "llm_requests_per_second"] == 2.0
    # A name that was not there at all may have counted for months.
    values = target.values(
        f'{reason}"stop"}} 100\n{reason}"length"}} 30\nvllm:generation_tokens_total 9000000\n'
    )
    assert values["service/s", "llm_tokens_per_second"] == 0.0


def _histogram(name: str, counts: Sequence[int]) -> str:
    bounds = ("0.1", "1.0", "+Inf")
    lines = (f'{name}_bucket{{le="{b}"}} {c}\n' for b, c in zip(bounds, counts, strict=True))
    return "".join(lines) + f"{name}_count {counts[-1]}\n{name}_sum 1\n"


def test_a_quantile_is_that_of_the_window_not_of_the_life() -> None:
    target = Target({"service": "s"}, window_seconds=30)
    name = "vllm:e2e_request_latency_seconds"
    key = ("service/s", "llm_request_latency_seconds")
    assert key not in target.values(_histogram(name, (1000, 1000, 1000)))
    # Three requests are too few to say anything; twenty slow ones are not.
    assert key not in target.values(_histogram(name, (1000, 1003, 1003)))
    assert 0.9 < target.values(_histogram(name, (1000, 1023, 1023)))[key] <= 1.0
    assert target.values(_histogram(name, (2000, 2023, 2023)))[key] < 0.2


def test_a_ratio_is_zero_where_no_such_event_happened_and_absent_without_events() -> None:
    target = Target({"service": "s"}, kind="galen")
    key = ("service/s", "llm_error_ratio")
    line = "llm_requests_total{{status={!r}}} {}\n".format
    ok = line("200", 50).replace("'", '"')
    assert key not in target.values(ok)
    assert key not in target.values(ok)
    assert target.values(ok.replace("50", "60"))[key] == 0.0
    bad = line("503", 10).replace("'", '"')
    assert target.values(ok.replace("50", "60") + bad)[key] == 0.5


def test_blank_values_are_absent_and_told() -> None:
    collection = Target().take(
        f"DCGM_FI_DEV_GPU_TEMP{{{GPU}}} 9223372036854775794\n"
        f"DCGM_FI_DEV_GPU_UTIL{{{GPU}}} NaN\nDCGM_FI_DEV_POWER_USAGE{{{GPU}}} +Inf\n"
        f"DCGM_FI_DEV_SM_CLOCK{{{GPU}}} 1980\n"
    )
    assert [s.signal for s in collection.samples] == ["gpu_sm_clock_mhz"]
    assert len(collection.notes) == 3


def test_an_xid_that_a_target_repeats_for_ever_stands_for_a_while_only() -> None:
    target = Target(hold_seconds=40)
    key = ("host/box7/gpu/1", "gpu_xid")
    codes = [79, 79, 31, 31, 31, 31, 0]
    seen = [target.values(f"DCGM_FI_DEV_XID_ERRORS{{{GPU}}} {code}\n").get(key) for code in codes]
    # Nobody knows how old the first one is.
    assert seen == [None, None, 31, 31, 31, 0, 0]


def test_throttle_reasons_are_told_one_by_one() -> None:
    values = Target().values(f"DCGM_FI_DEV_CLOCK_THROTTLE_REASONS{{{GPU}}} 72\n")
    assert values["host/box7/gpu/1", "gpu_throttle_thermal"] == 1
    assert values["host/box7/gpu/1", "gpu_throttle_power"] == 0


def test_times_that_are_not_of_now_make_a_series_stale() -> None:
    target = Target()
    milliseconds = int((NOW + 115) * 1000)
    collection = target.take(
        f'vllm:num_requests_waiting{{model_name="m"}} 1 {milliseconds - 3_000}\n'
        f'vllm:num_requests_running{{model_name="m"}} 1 {milliseconds - 400_000}\n'
        f'vllm:kv_cache_usage_perc{{model_name="m"}} 0.5 {milliseconds + 400_000}\n'
    )
    assert [s.signal for s in collection.samples] == ["llm_queue_depth"]
    assert "vllm:num_requests_running" in collection.notes[0]


def test_what_another_galen_exports_keeps_its_entity() -> None:
    labels = 'host="a",entity="host/a/gpu/0",gpu_id="0",simulated="true"'
    text = f"galen_store_readable 1\ngpu_power_usage_watts{{{labels}}} 70\n"
    (sample,) = Target({"instance": "b:9101"}).take(text).samples
    assert (sample.entity, sample.value) == ("host/a/gpu/0", 70)
    assert sample.labels == {"simulated": "true"}
    hostile = text.replace("host/a/gpu/0", "../../etc")
    assert Target().take(hostile).samples == []


def test_exporters_of_hosts_and_gpus_are_no_engines() -> None:
    text = "process_resident_memory_bytes 5\nnode_load1 1\n"
    assert Target({"instance": "a:9100"}).values(text) == {}
    text = 'process_resident_memory_bytes 5\nvllm:num_requests_waiting{model_name="m"} 1\n'
    assert Target().values(text)["service/m", "engine_resident_memory_bytes"] == 5


def test_a_kind_can_be_set_and_a_wrong_one_is_refused() -> None:
    text = "vllm:num_requests_waiting 1\ntgi_queue_size 2\n"
    assert Target({"service": "s"}, kind="tgi").values(text) == {
        ("service/s", "llm_queue_depth"): 2
    }
    with pytest.raises(ValueError, match="none of auto, dcgm"):
        ReadingSettings(kind="moon")


def test_names_that_mean_nothing_are_told_once_for_a_histogram() -> None:
    collection = Target().take(
        "# TYPE mine histogram\n"
        + _histogram("mine", (1, 2, 3))
        + "mine_created 1\nyours_total 1\n"
    )
    assert collection.unrecognised == ["mine", "yours_total"]


@pytest.mark.parametrize("limit", ["max_series_per_name", "max_entities"])
def test_a_label_that_explodes_is_named_and_the_rest_is_read(limit: str) -> None:
    target = Target({"service": "s", "instance": "x"}, **{limit: 20})
    text = "".join(f'DCGM_FI_DEV_GPU_TEMP{{gpu="{number}"}} 1\n' for number in range(100))
    collection = target.take(text + 'node_load1{x="1"} 1\nvllm:num_requests_waiting 7\n')
    assert 19 <= len({s.entity for s in collection.samples if "/gpu/" in s.entity}) <= 20
    told = " ".join(collection.notes)
    assert ("DCGM_FI_DEV_GPU_TEMP" in told and "gpu" in told) or "more than 20 entities" in told


def test_too_many_series_are_refused_with_their_names() -> None:
    target = Target(max_series=50)
    bomb = "".join(f'vllm:num_requests_waiting{{id="{n}"}} 1\n' for n in range(100))
    with pytest.raises(CollectorError, match=r"vllm:num_requests_waiting.*label 'id'"):
        target.take(bomb)
    assert target.values('vllm:num_requests_waiting{model_name="m"} 1\n')


def test_labels_that_change_with_every_scrape_do_not_fill_the_memory() -> None:
    target = Target({"service": "s"}, max_series=200)
    for scrape in range(50):
        values = target.values(
            "".join(f'vllm:num_requests_waiting{{id="{scrape}-{n}"}} 1\n' for n in range(50))
        )
        assert values["service/s", "llm_queue_depth"] == 50
    assert len(target.reader._table.series) <= 200


def test_rates_survive_the_forgetting_of_old_series() -> None:
    target = Target({"service": "s"}, max_series=120)
    rates = []
    for scrape in range(1, 12):
        churn = "".join(f'vllm:num_requests_waiting{{id="{scrape}-{n}"}} 1\n' for n in range(50))
        values = target.values(f"{churn}vllm:generation_tokens_total {scrape * 30 + 10_000}\n")
        rates.append(values.get(("service/s", "llm_tokens_per_second")))
    assert rates == [None, *([2.0] * 10)]


counts = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 50)), st.booleans()), min_size=1, max_size=40
)


@given(counts)
def test_increases_are_conserved_across_resets_and_gaps(
    steps: list[tuple[int | None, bool]],
) -> None:
    history, window = CounterHistory(keep_seconds=1e6), CounterWindow[str](keep_seconds=1e6)
    history.resize([None], [False])
    history.add(0.0, [0.0])
    window.add(0.0, {"x": 0.0})
    counter = happened = 0
    for second, (events, restart) in enumerate(steps, start=1):
        if events is None:  # the series is away for a scrape
            history.add(float(second), [math.nan])
            window.add(float(second), {})
            continue
        # A restart hides itself when the new value has already passed the old one.
        if restart and events < counter:
            counter = 0
        counter += events
        happened += events
        history.add(float(second), [float(counter)])
        window.add(float(second), {"x": float(counter)})
    grown = history.window()
    assert grown is not None
    assert grown.values == [happened]
    assert window.increases(1e6).get("x", 0.0) == happened


@given(
    st.lists(
        st.tuples(st.floats(-100, 100), st.lists(st.floats(0, 1e9), min_size=3, max_size=3)),
        max_size=30,
    )
)
def test_increases_are_never_negative_whatever_the_clock_does(
    scrapes: list[tuple[float, list[float]]],
) -> None:
    history = CounterHistory(keep_seconds=50)
    history.resize([None] * 3, [False, True, False])
    at = 0.0
    for moved, values in scrapes:
        at += moved
        history.add(at, values)
        for increases in (history.step(), history.window()):
            if increases is not None:
                assert increases.seconds > 0
                assert all(value >= 0 for value in increases.values)


def test_links_say_which_pods_share_a_gpu_and_its_numbers_are_not_added_up() -> None:
    shared = f'DCGM_FI_DEV_FB_USED{{{GPU},namespace="ml",pod="a"}} 10\n'
    both = shared + shared.replace('"a"', '"b"')
    collection = Target({"instance": "x:9400"}).take(both)
    (sample,) = collection.samples
    assert (sample.entity, sample.value) == ("host/box7/gpu/1", 10 * 1024**2)
    assert set(collection.links) == {
        Link("pod/ml.a", Relation.RUNS_ON, "host/box7/gpu/1"),
        Link("pod/ml.b", Relation.RUNS_ON, "host/box7/gpu/1"),
    }


def test_a_replica_is_linked_to_its_pod_and_node() -> None:
    target = Target({"instance": "10.0.0.9:8000", "pod": "m-0", "namespace": "ml", "node": "n3"})
    links = target.take('vllm:num_requests_waiting{model_name="m"} 4\n').links
    assert set(links) == {
        Link("service/m/replica/m-0", Relation.RUNS_ON, "pod/ml.m-0"),
        Link("service/m/replica/m-0", Relation.RUNS_ON, "host/n3"),
    }


hostile_labels = st.dictionaries(
    st.sampled_from(
        ["le", "quantile", "gpu", "UUID", "GPU_I_ID", "Hostname", "model_name", "service", "entity",
         "instance", "status", "mode", "finished_reason", "pod", "namespace", "simulated"]
    ),
    st.sampled_from(["", "0", "+Inf", "NaN", "0.95", "../..", "a/b/c", "stop", "200", "x y", "1e999"])
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8),
    max_size=4,
)  # fmt: skip


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(sorted(wanted_names())),
                hostile_labels,
                st.floats(width=32) | st.integers(-5, 10**19),
            ),
            max_size=12,
        ),
        min_size=2,
        max_size=4,
    )
)
@settings(max_examples=150, deadline=None)
def test_known_names_with_hostile_labels_give_sound_samples_or_none(
    scrapes: list[list[tuple[str, dict[str, str], float]]],
) -> None:
    target = Target({"instance": "a:1", "job": "j"}, minimum_events=1)
    for scrape in scrapes:
        lines = []
        for name, labels, value in scrape:
            inside = ",".join(
                '{}="{}"'.format(label, text.replace("\\", "\\\\").replace('"', '\\"'))
                for label, text in labels.items()
            )
            lines.append(f"{name}{{{inside}}} {value}\n")
        for sample in target.take("".join(lines)).samples:
            assert math.isfinite(sample.value)
            assert sample.signal in catalogue()
            assert sample.entity == "fleet" or entity(*sample.entity.split("/")) == sample.entity
