"""`galen detect` and `galen diagnose`: analysis of a file, off line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galen.commands.context import JsonOption, print_json, print_line, progress
from galen.errors import ConfigError

FileArgument = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(detect)
    app.command()(diagnose)


def detect(
    file: FileArgument,
    train_rows: Annotated[
        int, typer.Option("--train-rows", min=1, help="Leading rows taken as normal.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="CSV to write.", show_default="standard output")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Score a wide CSV causally: row t depends on rows up to t only.

    The first column is `timestamp`, each other one a metric; an empty cell is missing. The output has
    `timestamp,score,is_anomaly,top_signal`; a score above 1 is an anomaly.
    """
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
