from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from collectors.scraping.build import scrape_collector
from collectors.settings import CollectorsSettings

Until = Callable[[Callable[[], Any]], Any]


def _settings(**job: Any) -> CollectorsSettings:
    return CollectorsSettings.model_validate(
        {"scrape": [{"interval_seconds": 1, "deadline_seconds": 1} | job]}
    )


def _notes(settings: CollectorsSettings, until: Until, words: str) -> None:
    collector = scrape_collector(settings)
    try:
        until(lambda: words in "\n".join(collector.collect(1.0).notes))
    finally:
        collector.close()


def test_a_kind_gives_the_usual_port(until: Until) -> None:
    _notes(_settings(kind="dcgm", targets=["127.0.0.1"]), until, "scrape-targets-127.0.0.1:9400: ")


def test_certificates_that_cannot_be_used_are_a_failure_in_sight(
    until: Until, tmp_path: Path
) -> None:
    settings = _settings(targets=["https://127.0.0.1:1"], ca_file=str(tmp_path / "absent.pem"))
    _notes(settings, until, "the certificates cannot be used")


def test_what_is_not_verified_is_said() -> None:
    with capture_logs() as logged:
        scrape_collector(_settings(targets=["gpu1"], verify_tls=False)).close()
    assert [row["event"] for row in logged] == ["tls_not_verified"]


def test_samples_carry_what_the_job_knows_of_its_targets(until: Until, site: Any) -> None:
    settings = _settings(targets=[site.url("/gpu")], labels={"node": "box7"})
    collector = scrape_collector(settings)
    try:
        found = until(
            lambda: [
                s for s in collector.collect(1.0).samples if s.signal == "gpu_temperature_celsius"
            ]
        )
    finally:
        collector.close()
    assert found[0].entity == "host/box7/gpu/0"
    assert found[0].value == 40.0
