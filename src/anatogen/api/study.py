"""Reader studies: blinded scans, read in the browser, and what the answers show."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anatogen.core.errors import UserError
from anatogen.core.extras import require_extra

if TYPE_CHECKING:
    from anatogen.study.analysis.analyse import Analysis
    from anatogen.study.design import NewStudy
    from anatogen.study.exchange import Exchanged
    from anatogen.study.spec import StudySpec
    from anatogen.study.store import ReaderProgress


def new_study(
    study: Path | str,
    synthetic: Path | str,
    *,
    real: Path | str | None = None,
    reconstructed: Path | str | None = None,
    readers: Sequence[str] = ("reader",),
    protocols: Sequence[str] = ("paper",),
    num_cases: int | None = None,
    repeat: float = 0.15,
    seed: int | None = None,
    title: str = "Reader study",
    allow_leaks: bool = False,
) -> "NewStudy":
    """Makes a study: chooses scans, makes them alike, checks that only the picture tells sources apart.

    Scans are a folder in any format, a prepared dataset, or one split of it such as DATASET:test.

    Args:
        study: Folder to be made.
        synthetic: Synthetic scans.
        real: Real scans on the same grid.
        reconstructed: Real scans that went through an autoencoder.
        readers: Names of the readers.
        protocols: Protocols, in the order in which readers go through them: paper, turing, 2afc or YAML
            files.
        num_cases: Number of cases of each source; default 50, or as many as every source has.
        repeat: Fraction of cases that every reader is shown twice, from 0 to 0.5.
        seed: Random seed of choice and orders; who knows it can work out the answers. Default one that nobody
            knows beforehand.
        title: Title that readers see.
        allow_leaks: Make the study even if storage gives sources away.

    Returns:
        What was made, and what is known of its blinding.

    Raises:
        UserError: If settings are wrong, scans can't be read or are not on one grid, or storage gives sources
            away and nothing could be done about it.
    """
    require_extra("study")
    from anatogen.report.progress import shown_progress
    from anatogen.study.design import new_study as make_study

    with shown_progress() as progress:
        return make_study(
            study,
            synthetic,
            real=real,
            reconstructed=reconstructed,
            readers=readers,
            protocols=protocols,
            num_cases=num_cases,
            repeat=repeat,
            seed=seed,
            title=title,
            allow_leaks=allow_leaks,
            progress=progress,
        )


def study_links(study: Path | str, *, url: str = "http://127.0.0.1:8000") -> str:
    """Shows each reader's link, and the organiser's.

    Args:
        study: Folder of the study.
        url: Address where readers reach the server.

    Returns:
        A line for each link.

    Raises:
        UserError: If the folder is no study, or the url no address of a server.
    """
    require_extra("study")
    from anatogen.study.serve import describe_links
    from anatogen.study.store import open_study

    return describe_links(open_study(Path(study)), url)


def study_status(study: Path | str) -> "list[ReaderProgress]":
    """Shows how far each reader is; never what they answered.

    Args:
        study: Folder of the study.

    Returns:
        The readers, in order.

    Raises:
        UserError: If the folder is no study.
    """
    require_extra("study")
    from anatogen.study.store import open_study, progress

    return progress(open_study(Path(study)))


def serve_study(
    study: Path | str, *, host: str = "127.0.0.1", port: int = 8000, url: str | None = None
) -> None:
    """Serves the readers' pages and the organiser's until Ctrl-C; shows their links.

    Args:
        study: Folder of the study.
        host: Address to listen on; 0.0.0.0 lets others in the network in.
        port: Port to listen on; 0 takes a free one.
        url: Address where readers reach the server, if elsewhere, such as a proxy with HTTPS.

    Raises:
        UserError: If the folder is no study, the viewer is missing, or host, port or url can't be used.
    """
    require_extra("study")
    from anatogen.study.serve import serve

    serve(Path(study), host, port, url)


def export_study(study: Path | str, file: Path | str, *, reader: str | None = None) -> "Exchanged":
    """Packs a study; of a reader's copy the answers alone, to be imported where the study was made.

    Args:
        study: Folder of the study.
        file: The .zip to be written.
        reader: Reader for whose machine it is: without the key and others' answers.

    Returns:
        What was packed.

    Raises:
        UserError: If the folder is no study, or has no such reader.
    """
    require_extra("study")
    from anatogen.study.exchange import export_study as export

    return export(Path(study), Path(file), reader=reader)


def import_study(study: Path | str, file: Path | str) -> "Exchanged":
    """Unpacks a study, or adds the answers of a copy to it; importing twice does no harm.

    Args:
        study: Folder of the study, or one to be made.
        file: A .zip that `anatogen study export` wrote.

    Returns:
        What was unpacked or added.

    Raises:
        UserError: If the file is damaged, or of another study.
    """
    require_extra("study")
    from anatogen.study.exchange import import_study as add

    return add(Path(study), Path(file))


def analyse_study(
    study: Path | str,
    out: Path | str | None = None,
    *,
    margin: float = 0.5,
    share_margin: float = 0.15,
    unfinished: bool = False,
) -> "tuple[Analysis, Path]":
    """Says what the answers show: ratings, equivalence, agreement, who can tell real from synthetic, times.

    Args:
        study: Folder of the study, with its key.
        out: Folder for page, JSON and CSV; default STUDY/analysis.
        margin: Difference of mean answers, in points, below which they are equivalent.
        share_margin: Difference of shares of best answers, as a fraction, below which they are equivalent.
        unfinished: Analyse what there is though readers have cases left.

    Returns:
        The analysis, and the path of the page.

    Raises:
        UserError: If the folder is no study or a reader's copy, nothing was answered, readers are not done,
            or a margin is wrong.
    """
    require_extra("study")
    from anatogen.study.analysis.page import read_blinding, write_analysis

    folder = Path(study)
    spec, analysis = _analysed(folder, unfinished=unfinished, margin=margin, share_margin=share_margin)
    written = folder / "analysis" if out is None else Path(out)
    return analysis, write_analysis(analysis, spec, written, read_blinding(folder))


def compare_studies(out: Path | str, studies: Sequence[Path | str], *, unfinished: bool = False) -> Path:
    """Draws the answers of several studies in one figure, such as one study for each dataset.

    Args:
        out: The PNG file.
        studies: Folders of the studies, with their keys; bars bear the folders' names.
        unfinished: Draw what there is though readers have cases left.

    Returns:
        The file.

    Raises:
        UserError: If a folder is no study or a reader's copy, nothing was answered, readers are not done, two
            folders have one name, or no study asks for a rating.
    """
    require_extra("study")
    from anatogen.study.analysis.charts import answers_figure

    found: dict[str, Analysis] = {}
    for folder in map(Path, studies):
        name = folder.resolve().name
        if name in found:
            raise UserError(f"two of the studies' folders are named {name!r}: rename one of them")
        _, found[name] = _analysed(folder, unfinished=unfinished)
    if not any(analysis.ordinal for analysis in found.values()):
        raise UserError("none of the studies asks for a rating, so there is nothing to draw: name others")
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    answers_figure(found, path)
    return path


def _analysed(folder: Path, *, unfinished: bool, **margins: float) -> "tuple[StudySpec, Analysis]":
    """What a study is, and what its answers say, as soon as readers are done or `unfinished` is set."""
    from anatogen.study.analysis.analyse import analyse_answers, check_finished
    from anatogen.study.analysis.answers import read_answers
    from anatogen.study.spec import load_spec

    spec, rows = load_spec(folder), read_answers(folder)
    analysis = analyse_answers(rows, spec.protocols, **margins)
    if not unfinished:
        check_finished(rows)
    return spec, analysis
