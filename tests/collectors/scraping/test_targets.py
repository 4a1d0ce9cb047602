from __future__ import annotations

import pytest

from collectors.scraping.targets import TargetError, target_of


@pytest.mark.parametrize(
    ("address", "url", "instance"),
    [
        ("node1:9400", "http://node1:9400/metrics", "node1:9400"),
        ("node1", "http://node1/metrics", "node1"),
        ("http://node1:9400", "http://node1:9400/metrics", "node1:9400"),
        ("http://node1:9400/", "http://node1:9400/metrics", "node1:9400"),
        ("https://node1/a/metrics?x=1", "https://node1/a/metrics?x=1", "node1"),
        ("[fe80::1]:9400", "http://[fe80::1]:9400/metrics", "[fe80::1]:9400"),
        (" node1:9400\n", "http://node1:9400/metrics", "node1:9400"),
    ],
)
def test_what_people_write_becomes_a_target(address: str, url: str, instance: str) -> None:
    target = target_of("gpus", address)
    assert (target.url, target.instance) == (url, instance)
    assert target.labels == {"job": "gpus", "instance": instance}


def test_labels_of_service_discovery_say_how_to_ask() -> None:
    target = target_of(
        "gpus",
        "node1:9400",
        {
            "__scheme__": "https",
            "__metrics_path__": "/x",
            "__param_collect[]": "a b",
            "__meta_kubernetes_pod": "p",
            "pod": "p",
            "job": "other",
            "empty": "",
        },
    )
    assert target.url == "https://node1:9400/x?collect%5B%5D=a+b"
    assert target.labels == {"job": "other", "instance": "node1:9400", "pod": "p"}
    assert target.entity == "collector/scrape-other-node1_9400"


@pytest.mark.parametrize(
    "address", ["", "http://", "ftp://node1", "node1:port", "node 1", "http://[::1", "file:///etc"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(TargetError, match=r"no address"):
        target_of("gpus", address)


def test_a_password_has_no_place_in_an_address() -> None:
    with pytest.raises(TargetError, match="password_file") as error:
        target_of("gpus", "https://me:secret@node1/metrics?token=secret")
    assert "secret" not in str(error.value).replace("password_file", "")


def test_no_secret_is_shown() -> None:
    target = target_of("gpus", "https://node1/metrics?token=secret#secret")
    shown = f"{target!r} {target.name} {target.entity} {target.shown_url} {dict(target.labels)}"
    assert "secret" not in shown
    assert "node1" in shown
    with pytest.raises(TargetError) as error:
        target_of("gpus", "https://me:secret@:99999999?token=secret")
    assert "secret" not in str(error.value)


def test_targets_spread_over_the_interval_and_keep_their_place() -> None:
    phases = [target_of("gpus", f"node{number}:9400").phase() for number in range(1000)]
    assert phases == [target_of("gpus", f"node{number}:9400").phase() for number in range(1000)]
    tenths = [sum(1 for phase in phases if int(phase * 10) == tenth) for tenth in range(10)]
    assert min(tenths) > 60
    assert max(tenths) < 140
