"""The `anatogen study` commands."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anatogen.api import study as api
from anatogen.cli.command import Group

if TYPE_CHECKING:
    from pathlib import Path

    from anatogen.study.analysis.analyse import Analysis
    from anatogen.study.store import ReaderProgress


def _show_summary(made: Any, given: Mapping[str, Any]) -> None:
    print(made.summary)


def _show_status(found: "Sequence[ReaderProgress]", given: Mapping[str, Any]) -> None:
    from anatogen.report.numbers import duration_text

    width = max(len(reader.name) for reader in found)
    for reader in found:
        last = f", last answer {reader.last_answer_at}" if reader.last_answer_at else ""
        paused = ", paused" if reader.paused else ""
        print(
            f"{reader.name:{width}}  {reader.num_done} of {reader.num_items} cases done, "
            f"{duration_text(reader.seconds_active)} of reading{last}{paused}"
        )


def _show_analysis(found: "tuple[Analysis, Path]", given: Mapping[str, Any]) -> None:
    from anatogen.study.analysis.headlines import headlines, summary

    analysis, page = found
    print(summary(analysis))
    for answer in headlines(analysis):
        print(f"{answer.question} {answer.headline}")
    print(f"analysis: {page}")


group = Group("study", help="Reader studies: blinded scans, read in the browser, and what the answers show.")
group.derive("new", api.new_study, _show_summary)
group.derive("links", api.study_links, lambda lines, given: print(lines))
group.derive("status", api.study_status, _show_status)
group.derive("serve", api.serve_study, lambda nothing, given: None)
group.derive("export", api.export_study, _show_summary)
group.derive("import", api.import_study, _show_summary)
group.derive("analyse", api.analyse_study, _show_analysis)
group.derive("compare", api.compare_studies, lambda path, given: print(f"figure: {path}"))
