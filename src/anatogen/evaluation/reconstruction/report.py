"""`anatogen compare-autoencoders`: autoencoders measured side by side, as a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anatogen.core.devices import device_named
from anatogen.core.errors import UserError
from anatogen.dataset.scan_sets import ScanSet
from anatogen.evaluation.reconstruction.measure import MeasuredAutoencoder, measure_autoencoders
from anatogen.evaluation.report import (
    Picture,
    Report,
    Section,
    about_scans,
    clear_report,
    open_report_folder,
    write_report,
)
from anatogen.generators.shipped import bundle_folder
from anatogen.report.numbers import joined
from anatogen.report.progress import Progress, silent
from anatogen.report.rows import Row
from anatogen.report.volume_figures import zoom_figure

_LIMITS = (
    "A synthetic scan can't be better than the reconstructions here, and may be much worse: these numbers "
    "judge the autoencoder alone.",
    "PSNR and SSIM reward blur. Look at the figure, and at the distance of slice features.",
)


@dataclass(frozen=True)
class ReconstructionEvaluation:
    """What was found.

    Attributes:
        rows_by_bundle: Rows of each bundle, by its name.
        page: The path of `report.html`.
    """

    rows_by_bundle: dict[str, list[Row]]
    page: Path


def report_reconstruction(
    data: Path | str,
    bundles: Sequence[Path | str],
    out: Path | str,
    *,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> ReconstructionEvaluation:
    """Measures how well autoencoders give held-out scans back, and writes a report.

    The arguments are those of `anatogen.compare_autoencoders`, which explains them.

    Raises:
        UserError: If a bundle can't be read or does not fit the scans, there are no scans, there is no such
            device, or the report's folder holds something else.
    """
    where = device_named(device)
    if seed < 0:
        raise UserError(f"seed is {seed}: it must be at least 0")
    out = Path(out)
    folders = [bundle_folder(bundle) for bundle in bundles]
    open_report_folder(out)
    scans, measured = measure_autoencoders(Path(data), folders, seed=seed, device=where, progress=progress)
    figure = clear_report(out) / "reconstruction.png"
    _draw(scans, measured, figure)
    rows_by_bundle = {name: found.rows for name, found in measured.items()}
    page = write_report(
        Report(
            title=f"Reconstructions of {len(scans)} held-out scans",
            summary=f"What is left of a scan after {joined(list(measured))} encoded and decoded it.",
            answers=(),
            sections=[
                Section(
                    "Autoencoders side by side",
                    "Means over the scans, with 95% intervals.",
                    pictures=[
                        Picture(
                            figure,
                            "Slices of real scans, and of their reconstructions by each autoencoder",
                            "A bad, a usual and a good reconstruction by the first autoencoder's PSNR, "
                            "with a region enlarged.",
                            black=True,
                        )
                    ],
                    columns=rows_by_bundle,
                )
            ],
            settings={"seed": seed},
            inputs={scans.role: about_scans(scans)},
            input_hashes={f"autoencoder of {name}": found.weights_sha256 for name, found in measured.items()},
            limits=_LIMITS,
            details={
                "per_scan": {
                    name: {measure: values.tolist() for measure, values in found.per_scan.items()}
                    for name, found in measured.items()
                }
            },
        ),
        out,
    )
    return ReconstructionEvaluation(rows_by_bundle, page)


def _draw(scans: ScanSet, measured: dict[str, MeasuredAutoencoder], path: Path) -> None:
    """Real slices and reconstructed ones side by side."""
    shown = list(next(iter(measured.values())).shown)
    columns = [("real", [scans.arrays[index] for index in shown], [""] * len(shown))]
    for name, found in measured.items():
        captions = [f"{found.per_scan['psnr'][index]:.1f} dB" for index in shown]
        columns.append((name, list(found.shown.values()), captions))
    zoom_figure(
        columns,
        path,
        row_labels=[f"{scans.role} scan {index + 1}" for index in shown],
        spacing_mm=scans.grid.spacing_mm,
        axis_codes=scans.grid.axis_codes,
    )
