"""`galen detect` and `galen diagnose`: analysis of a file, or of a fleet's history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galen.commands.context import ConfigOption, JsonOption, print_json, print_line, progress
from galen.commands.fleet import ClusterOption, FleetQuestion, WorkersOption, detect_fleet
from galen.errors import ConfigError

FileArgument = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(detect)
    app.command()(diagnose)


def detect(
    source: Annotated[
        str,
        typer.Argument(
            help="CSV file; or prometheus:NAME of the configuration, or prometheus:URL, for a fleet."
        ),
    ],
    train_rows: Annotated[
        int | None,
        typer.Option("--train-rows", min=1, help="File: leading rows taken as normal."),
    ] = None,
    begin: Annotated[
        str, typer.Option("--from", help="Fleet: from when: 24h, ISO 8601 or epoch seconds.")
    ] = "24h",
    end: Annotated[
        str | None, typer.Option("--to", help="Fleet: until when.", show_default="now")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="Fleet: history before that to learn daily and weekly shapes from, such as 21d.",
            show_default="none",
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=3600,
            help="Fleet: seconds between two ticks.",
            show_default="every_seconds of the server's configuration",
        ),
    ] = None,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="CSV to write: scores of a file, alarms of a fleet.",
            show_default="standard output",
        ),
    ] = None,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Score causally what a file holds, or every series of a fleet: only the past judges a value.

    A file is a wide CSV: the first column is `timestamp`, each other one a metric; an empty cell is
    missing. The output has `timestamp,score,is_anomaly,top_signal`; a score above 1 is an anomaly.

    Of a fleet the live detection runs over the time that is asked for, and its alarms are listed by
    entity. Workers of a cluster read the server themselves. Exit status 1 when there was an anomaly.
    """
    if source.startswith("prometheus:"):
        question = FleetQuestion(source, begin, end, train, step, cluster, workers)
        raise typer.Exit(detect_fleet(question, config=config, out=out, json=json))
    file = Path(source)
    if not file.is_file():
        raise ConfigError(
            f"{source}: there is no such file", fix="Give a CSV file, or prometheus:NAME."
        )
    if train_rows is None:
        raise ConfigError("a file needs --train-rows", fix="Say how many rows are normal.")
    _detect_file(file, train_rows, out, json=json)


def _detect_file(file: Path, train_rows: int, out: Path | None, *, json: bool) -> None:
    import orjson

    from analysis.detection.offline import detect_frame
    from analysis.detection.wide_csv import WideCsvError, read_wide_csv

    try:
        frame = read_wide_csv(file)
        scored = detect_frame(frame, train_rows)
    except (WideCsvError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if out is not None:
        scored.to_csv(out, index=False)
    judged = scored.iloc[train_rows:]
    found = int(judged["is_anomaly"].sum())
    progress.print(f"{len(judged)} rows judged, {found} anomalous", markup=False)
    if json:
        rows = scored.to_dict("records")
        document = {"rows": rows, "judged": len(judged), "anomalies": found}
        print_json(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY, default=str).decode())
    elif out is None:
        print_line(scored.to_csv(index=False).rstrip("\n"))
    raise typer.Exit(1 if found else 0)


def diagnose(
    file: FileArgument,
    onset: Annotated[str, typer.Option(help="When the trouble began, as in the timestamp column.")],
    target: Annotated[
        str | None, typer.Option(help="Column whose trouble is to be explained, entity:signal.")
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="CSV source,target: calls or flows."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Rank what caused a trouble, from a CSV whose columns are `entity:signal`.

    Exit status 1 when a fault was found, 0 when the window looks normal.
    """
    from analysis.diagnosis.offline import diagnose_frame
    from analysis.diagnosis.offline_frame import FrameError, parse_time, read_edges, read_frame
    from analysis.findings import Verdict

    try:
        found = diagnose_frame(
            read_frame(file),
            parse_time(onset),
            target=target,
            edges=None if graph is None else read_edges(graph),
        )
    except FrameError as error:
        raise ConfigError(str(error)) from error
    if json:
        print_json(found)
    else:
        print_line(f"verdict: {found.verdict.value}")
        for one in found.hypotheses:
            print_line(f"{one.rank}. {one.cause} on {one.entity}: {one.confidence:.0%}")
            for sign, items in (("+", one.evidence), ("-", one.against)):
                for item in items:
                    print_line(f"     {sign} {item.statement}")
    raise typer.Exit(1 if found.verdict is Verdict.FAULT else 0)
