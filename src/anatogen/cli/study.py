"""The `anatogen study` commands; heavy imports wait until one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

study_app = typer.Typer(
    no_args_is_help=True,
    help="Reader studies: blinded scans, read in the browser, and what the answers show.",
)

Study = Annotated[Path, typer.Argument(help="Folder of the study.")]


_SCANS = "folder of scans, prepared dataset, or one split of it as DATASET:test"


@study_app.command()
def new(
    study: Annotated[Path, typer.Argument(help="Folder to be made.")],
    synthetic: Annotated[Path, typer.Option(help=f"Synthetic scans: {_SCANS}.")],
    real: Annotated[Path | None, typer.Option(help="Real scans on the same grid.")] = None,
    reconstructed: Annotated[
        Path | None, typer.Option(help="Real scans that went through an autoencoder.")
    ] = None,
    readers: Annotated[str, typer.Option(help="Their names, with commas between.")] = "reader",
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="paper, turing, 2afc or a YAML file; again for another. Default paper."),
    ] = None,
    number: Annotated[
        int | None, typer.Option("--number", "-n", help="Cases of each source; default 50 if there are.")
    ] = None,
    repeat: Annotated[float, typer.Option(help="Share of cases that each reader is shown twice.")] = 0.15,
    seed: Annotated[
        int | None, typer.Option(help="Of choice and orders; who knows it can work out the answers.")
    ] = None,
    title: Annotated[str, typer.Option(help="What readers see.")] = "Reader study",
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="Make the study even if storage gives sources away.")
    ] = False,
) -> None:
    """Make a study: choose scans, make them alike, check that nothing but the picture gives sources away."""
    from rich.console import Console

    from anatogen.study.design import new_study

    with Console(stderr=True).status("Making the study") as status_line:
        made = new_study(
            study,
            synthetic,
            real=real,
            reconstructed=reconstructed,
            readers=readers.split(","),
            protocols=protocol or ("paper",),
            number=number,
            repeat=repeat,
            seed=seed,
            title=title,
            allow_leaks=allow_leaks,
            progress=lambda text: status_line.update(text[:1].upper() + text[1:]),
        )
    print(made.summary)


@study_app.command()
def links(
    study: Study,
    url: Annotated[
        str, typer.Option(help="Where the study is served, as readers reach it.")
    ] = "http://127.0.0.1:8000",
) -> None:
    """Show each reader's link, and the organiser's."""
    from anatogen.study.links import describe_links
    from anatogen.study.store import open_study

    print(describe_links(open_study(study), url))


@study_app.command()
def status(study: Study) -> None:
    """Show how far each reader is; never what they answered."""
    from anatogen.report.numbers import duration_text
    from anatogen.study.store import open_study, progress

    found = progress(open_study(study))
    width = max(len(reader.name) for reader in found)
    for reader in found:
        last = f", last answer {reader.last_answer_at}" if reader.last_answer_at else ""
        paused = ", paused" if reader.paused else ""
        print(
            f"{reader.name:{width}}  {reader.num_done} of {reader.num_items} cases done, "
            f"{duration_text(reader.seconds_active)} of reading{last}{paused}"
        )


@study_app.command()
def serve(
    study: Study,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in the network in.")
    ] = "127.0.0.1",
    url: Annotated[
        str | None, typer.Option(help="Where readers reach it, if elsewhere, such as a proxy with HTTPS.")
    ] = None,
) -> None:
    """Serve the readers' pages and the organiser's until Ctrl-C; show their links."""
    from anatogen.study.serve import serve as serve_study

    serve_study(study, host, port, url)


@study_app.command("export")
def export_study(
    study: Study,
    file: Annotated[Path, typer.Argument(help="The .zip to be written.")],
    reader: Annotated[
        str | None, typer.Option(help="For this reader's machine: without the key and others' answers.")
    ] = None,
) -> None:
    """Pack a study; a reader's copy packs the answers alone, to be imported where the study was made."""
    from anatogen.study.exchange import export_study as export

    print(export(study, file, reader=reader).summary)


@study_app.command("import")
def import_study(
    study: Annotated[Path, typer.Argument(help="Folder of the study, or one to be made.")],
    file: Annotated[Path, typer.Argument(help="A .zip that `anatogen study export` wrote.")],
) -> None:
    """Unpack a study, or add the answers of a copy to it; importing twice does no harm."""
    from anatogen.study.exchange import import_study as add

    print(add(study, file).summary)


@study_app.command()
def analyse(
    study: Study,
    out: Annotated[
        Path | None, typer.Option(help="Folder for page, JSON and CSV; default STUDY/analysis.")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Mean answers that differ by less are equivalent, in points.")
    ] = 0.5,
    share_margin: Annotated[
        float, typer.Option(help="Shares of best answers that differ by less are equivalent, as a fraction.")
    ] = 0.15,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Analyse what there is though readers have cases left.")
    ] = False,
) -> None:
    """Say what the answers show: ratings, equivalence, agreement, who can tell real from synthetic, times."""
    from anatogen.study.analysis.headlines import headlines, summary
    from anatogen.study.analysis.page import analyse_study

    analysis, page = analyse_study(
        study, out, margin=margin, share_margin=share_margin, unfinished=unfinished
    )
    print(summary(analysis))
    for answer in headlines(analysis):
        print(f"{answer.question} {answer.headline}")
    print(f"analysis: {page}")
