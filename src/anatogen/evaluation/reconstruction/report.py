"""`anatogen compare-autoencoders`: autoencoders measured side by side, as a page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anatogen.core.devices import device_named
from anatogen.evaluation.reconstruction.measure import FIGURE_NAME, REPORT_NAME, evaluate_reconstruction
from anatogen.evaluation.report import (
    Picture,
    Report,
    Section,
    clear_report,
    open_report_folder,
    write_report,
)
from anatogen.generators.shipped import bundle_folder
from anatogen.report.progress import Progress, silent
from anatogen.report.rows import Row

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

    Args:
        data: A prepared dataset (its test scans), one split such as "DATASET:validation", or a folder.
        bundles: Model bundles, folders of runs, or names of models that come with the package.
        out: Folder of the report; may hold an earlier one, which is replaced.
        seed: Of the intervals.
        device: Where autoencoders compute: "auto" for a GPU where there is one, "cpu", "cuda" or "cuda:1".
        progress: Told (what, done, total).

    Raises:
        UserError: If a bundle can't be read or does not fit the scans, there are no scans, there is no such
            device, or the report's folder holds something else.
    """
    where = device_named(device)
    out = Path(out)
    folders = [bundle_folder(bundle) for bundle in bundles]
    open_report_folder(out)
    found = evaluate_reconstruction(Path(data), folders, out, seed=seed, device=where, progress=progress)
    clear_report(out, keep=(REPORT_NAME, FIGURE_NAME))
    record = json.loads((out / REPORT_NAME).read_text(encoding="utf-8"))
    scans = record["scans"]
    names = list(found.rows_by_bundle)
    page = write_report(
        Report(
            title=f"Reconstructions of {scans['number']} held-out scans",
            summary=f"What is left of a scan after {' and '.join(names)} encoded and decoded it.",
            answers=(),
            sections=[
                Section(
                    "Autoencoders side by side",
                    "Means over the scans, with 95% intervals.",
                    pictures=[
                        Picture(
                            found.figure,
                            "Slices of real scans, and of their reconstructions by each autoencoder",
                            "A bad, a usual and a good reconstruction by the first autoencoder's PSNR, "
                            "with a region enlarged.",
                            black=True,
                        )
                    ],
                    columns=found.rows_by_bundle,
                )
            ],
            settings={"seed": seed},
            inputs={
                "held-out": {
                    "num_scans": scans["number"],
                    "shape": scans["grid"]["shape"],
                    "spacing_mm": scans["grid"]["spacing_mm"],
                    "sha256": scans["sha256"],
                }
            },
            input_hashes={
                f"autoencoder of {name}": record["bundles"][name]["weights_sha256"] for name in names
            },
            limits=_LIMITS,
        ),
        out,
    )
    return ReconstructionEvaluation(found.rows_by_bundle, page)
