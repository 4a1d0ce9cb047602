"""The process that ``benchmarks.scraping`` measures: Galen's collecting of many targets, into its store.

``python -m benchmarks.fleet.scraper SETTINGS.json STATE_DIR`` runs the collectors of the settings once a
second and writes what they give, as the watch loop does, and prints one JSON line a second.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import structlog

from collectors.poller import Poller
from collectors.registry import build_collectors
from collectors.scraping.collector import ENTITY
from collectors.settings import CollectorsSettings
from collectors.store.sqlite import SqliteSeriesStore


def main() -> int:
    """Collect until ended."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    settings = CollectorsSettings.model_validate_json(Path(sys.argv[1]).read_text("utf-8"))
    folder = Path(sys.argv[2])
    store = SqliteSeriesStore(folder / "series.sqlite")
    poller = Poller(build_collectors(settings, state_dir=folder))
    written, raw = 0, 0.0
    while True:
        began = time.monotonic()
        tick = poller.tick(time.time())
        written += store.write(tick.samples)
        own = {each.signal: each.value for each in tick.samples if each.entity == ENTITY}
        raw += sum(each.value for each in tick.samples if each.signal == "scrape_success")
        print(json.dumps({"written": written, "scrapes": raw, **own}), flush=True)
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))


if __name__ == "__main__":
    sys.exit(main())
