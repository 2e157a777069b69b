"""The commands that begin with scans: doctor, plan, prepare, and the whole way."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anatogen.api import scans as api
from anatogen.cli.command import Group

if TYPE_CHECKING:
    from pathlib import Path

    from anatogen.config.resolving import Section
    from anatogen.dataset.prepare import PrepareSummary
    from anatogen.doctor.diagnosis import Diagnosis
    from anatogen.planning.plan import Plan


def add_commands(group: Group) -> None:
    """Adds the commands."""
    group.derive("run", api.run, _show_run, _all_keys)
    group.derive("doctor", api.doctor, _show_diagnosis, _prepare_keys)
    group.derive("plan", api.plan, _show_plan, _all_keys)
    group.derive("prepare", api.prepare, _show_prepared, _prepare_keys)
    group.derive("recipes", api.recipes, _show_recipes)
    group.derive("demo", api.demo, lambda page, given: print(f"\nopen {page}"))


def _prepare_keys() -> "Sequence[type[Section]]":
    from anatogen.dataset.prepare_config import PrepareConfig

    return (PrepareConfig,)


def _all_keys() -> "Sequence[type[Section]]":
    from anatogen.config.presets import FAMILIES

    return (*_prepare_keys(), *FAMILIES.values())


def _show_run(page: "Path | None", given: Mapping[str, Any]) -> None:
    print("the same command without --dry-run goes on" if page is None else f"open {page}")


def _show_diagnosis(diagnosis: "Diagnosis", given: Mapping[str, Any]) -> None:
    from anatogen.doctor.page import RECORDS_NAME
    from anatogen.doctor.table import print_diagnosis

    print_diagnosis(diagnosis, given["out"])
    if not diagnosis.is_usable:
        sys.exit(1)
    command = ["anatogen", "prepare", str(given["scans"]), "DATA"]
    if not given["headers_only"]:
        command += ["--records", str(given["records"] or given["out"] / RECORDS_NAME)]
    print(f"next, with what is said above to add: {shlex.join(command)}")


def _show_plan(made: "Plan", given: Mapping[str, Any]) -> None:
    from anatogen.planning.plan import next_commands

    print(made.text())
    print(f"\nsaved in {given['out']}; next:")
    for command in next_commands(given["scans"], given["out"], given["records"]):
        print(f"  {command}")


def _show_prepared(summary: "PrepareSummary", given: Mapping[str, Any]) -> None:
    from anatogen.dataset.discover import ignored_text

    for decision in summary.decisions:
        print(f"  {decision}")
    for left_out in summary.left_out:
        print(f"  left out: {left_out.name}: {left_out.reason}")
    if summary.ignored:
        print(f"  files ignored: {ignored_text(summary.ignored)}")
    num_cases = len(summary.manifest.cases)
    counts = ", ".join(f"{count} {split}" for split, count in summary.num_cases.items())
    state = "complete already" if summary.was_complete else "prepared"
    num_maps = sum(left_out.refusal.is_of_map for left_out in summary.left_out)
    others = f"{len(summary.left_out) - num_maps} left out" + (f", {num_maps} label maps" if num_maps else "")
    print(f"{state}: {num_cases} scans ({counts}), {others}, in {given['out']}")


def _show_recipes(found: Mapping[str, str], given: Mapping[str, Any]) -> None:
    width = max(map(len, found))
    for name, summary in found.items():
        print(f"{name:{width}}  {summary}")
