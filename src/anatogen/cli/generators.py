"""The commands that train, sample and judge a generator."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anatogen.api import generators as api
from anatogen.cli.command import Group

if TYPE_CHECKING:
    from anatogen.config.resolving import Section
    from anatogen.evaluation.evaluate import Evaluation
    from anatogen.evaluation.reconstruction.report import ReconstructionEvaluation


def add_commands(group: Group) -> None:
    """Adds the commands."""
    group.derive("train", api.train, _show_trained, _train_keys)
    group.derive("train-gan", api.train_gan, _show_trained, _gan_keys)
    group.derive("models", api.models, lambda lines, given: print(lines))
    group.derive("sample", api.sample, _show_samples)
    group.derive("reconstruct", api.reconstruct, _show_reconstructed)
    group.derive("evaluate", api.evaluate, _show_evaluation)
    group.derive("compare-autoencoders", api.compare_autoencoders, _show_comparison)


def _train_keys() -> "Sequence[type[Section]]":
    from anatogen.config.presets import FAMILIES

    return tuple(FAMILIES.values())


def _gan_keys() -> "Sequence[type[Section]]":
    from anatogen.config.settings import GANConfig

    return (GANConfig,)


def _show_trained(folder: Path | None, given: Mapping[str, Any]) -> None:
    if folder is not None:
        print(f"finished: {folder}")


def _show_samples(paths: Sequence[Path], given: Mapping[str, Any]) -> None:
    print(f"{len(paths)} synthetic scans in {given['out']}")
    if given["reject_copies"] is not None:
        from anatogen.generators.sampling import num_rejected

        print(f"{num_rejected(given['out'])} scans left out, because the audit flags them as copies")


def _show_reconstructed(paths: Sequence[Path], given: Mapping[str, Any]) -> None:
    print(f"{len(paths)} reconstructed scans in {given['out']}")


def _show_evaluation(found: "Evaluation", given: Mapping[str, Any]) -> None:
    from rich.console import Console

    from anatogen.report.rows import rows_table

    Console().print(rows_table(found.rows))
    for answer in found.answers:
        print(f"{answer.question} {answer.headline}")
    print(f"report: {found.page}")


def _show_comparison(found: "ReconstructionEvaluation", given: Mapping[str, Any]) -> None:
    from rich.console import Console

    from anatogen.report.rows import rows_table

    for name, rows in found.rows_by_bundle.items():
        print(f"\n{name}")
        Console().print(rows_table(rows))
    print(f"report: {found.page}")
