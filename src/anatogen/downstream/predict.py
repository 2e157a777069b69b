"""Masks of new scans, each in the geometry of its own file."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from anatogen.core.devices import device_named
from anatogen.core.errors import ScanError, UserError
from anatogen.core.files import write_json
from anatogen.dataset.common_grid import other_modality
from anatogen.dataset.conversion import to_grid
from anatogen.dataset.discover import NO_SCANS, LeftOut, Source, discover
from anatogen.dataset.manifest import Intensity
from anatogen.dataset.measures import map_refusal, scan_window
from anatogen.dataset.reading import read_source
from anatogen.dataset.regions import find_regions, window_voxels
from anatogen.downstream.segmenter import Segmenter, SegmenterDescription, load_segmenter
from anatogen.io.formats import ending
from anatogen.io.label_values import values_of
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume
from anatogen.report.progress import shown_progress

RECORD_NAME = "predicted_by.json"


def predict(
    scans: Path | str, segmenter: Path | str, out: Path | str, *, device: str = "auto"
) -> list[LeftOut]:
    """Writes a label map for every scan of a folder, as NIfTI in the scan's own voxels.

    Scans take the way that those went which were learned from. Left out is what `prepare` would leave out:
    label maps and scans of another modality. Masks that are there are kept, so a stopped call goes on where
    it was; `predicted_by.json` says which segmenter made them.

    The arguments are those of `anatogen.predict`, which explains them.

    Raises:
        UserError: If the segmenter, the scans or the device are missing, masks would come among the scans or
            among those of another segmenter.
    """
    scans, out = Path(scans), Path(out)
    place = device_named(device)
    found = load_segmenter(Path(segmenter))
    if not scans.is_dir():
        raise UserError(f"{scans} is not a folder: name a folder of scans")
    found.network.to(place)
    sources, left_out, _ = discover(scans)
    if not sources:
        raise UserError(f"{scans} holds no scans: {NO_SCANS}")
    names = mask_names(sources)
    _claim_folder(out, scans, names, found.description.weights_sha256)
    with shown_progress() as progress:
        for number, (source, name) in enumerate(zip(sources, names, strict=True)):
            path = out / name
            if not path.exists():
                try:
                    mask = segment_scan(_read(source, found.description), found)
                except ScanError as error:
                    left_out.append(LeftOut(source.name, error.refusal))
                else:
                    write_nifti(mask, path, np.uint8)
            progress("scans", number + 1, len(sources))
    return left_out


def segment_scan(scan: Volume, segmenter: Segmenter) -> Volume:
    """The label map of a scan, in its voxels; 0 where the common grid of no region reaches.

    Args:
        scan: Scan as it was read, in its own unit.
        segmenter: The network.

    Returns:
        Labels as float32, (D, H, W) and affine of the scan.

    Raises:
        ScanError: If it is nearly constant, or has no foreground or breasts where those are asked for.
    """
    description = segmenter.description
    modality = description.intensity.modality
    device = next(segmenter.network.parameters()).device
    best = np.zeros(scan.array.shape, np.float32)
    classes = np.zeros(scan.array.shape, np.uint8)
    for region in find_regions(scan, description.region, modality, None):
        intensity = _intensity(window_voxels(scan.array, region), description)
        placed = to_grid(scan, region, description.placement, intensity)
        x = torch.from_numpy(intensity.normalise(placed.array))[None, None]
        probabilities = segmenter.probabilities(x.to(device))[0].cpu().numpy()
        to_placed = np.linalg.inv(placed.affine) @ scan.affine
        # A class at a time: all of a large scan's at once would be many times its size.
        for number, probability in enumerate(probabilities):
            there = ndimage.affine_transform(
                probability, to_placed, output_shape=scan.array.shape, order=1, mode="grid-constant"
            )
            better = there > best
            classes[better], best[better] = number, there[better]
    labels = np.array(description.labels, np.float32)
    return Volume(labels[classes], scan.affine)


def mask_names(sources: list[Source]) -> list[str]:
    """Relative path of each scan's mask.

    Raises:
        UserError: If two scans would have one.
    """
    names: dict[str, str] = {}
    for source in sources:
        kind = "" if source.is_dicom else ending(Path(source.name))
        name = f"{source.name[: len(source.name) - len(kind)]}.nii.gz"
        if name in names:
            raise UserError(
                f"{names[name]} and {source.name} would both get the mask {name}: rename one of them"
            )
        names[name] = source.name
    return list(names)


def _claim_folder(out: Path, scans: Path, names: list[str], weights_sha256: str) -> None:
    """Marks a folder as one for this segmenter's masks; raises a UserError if it is something else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the masks")
    for name in names:
        if (out / name).resolve().is_relative_to(scans.resolve()):
            raise UserError(
                f"the mask {out / name} would come among the scans in {scans}: choose another folder"
            )
    there = [name for name in names if (out / name).exists()]
    try:
        made_by = json.loads((out / RECORD_NAME).read_text(encoding="utf-8"))["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        if there:
            raise UserError(
                f"{out} holds {there[0]}, and nothing that says which segmenter made it: choose another"
            ) from None
        write_json(out / RECORD_NAME, {"weights_sha256": weights_sha256})
    else:
        if made_by != weights_sha256:
            raise UserError(
                f"{out} holds masks of another segmenter: choose another folder, or empty this one"
            )


def _read(source: Source, description: SegmenterDescription) -> Volume:
    """Reads a scan; raises a ScanError for what `prepare` would leave out of a dataset of this modality."""
    scan = read_source(source, description.reading)
    of_map = map_refusal(values_of(scan.array))
    if of_map is not None:
        raise ScanError(of_map)
    refusal = other_modality(
        source.modality,
        (float(scan.array.min()), float(scan.array.max())),
        description.intensity.modality,
        whose="segmenter",
        is_told=description.told_modality,
    )
    if refusal is not None:
        raise ScanError(refusal)
    return scan


def _intensity(array: npt.NDArray[np.float32], description: SegmenterDescription) -> Intensity:
    if description.intensity.modality == "CT":
        return description.intensity
    low, high = scan_window(array, description.percentiles)
    return Intensity(modality="MR", low=low, high=high)
