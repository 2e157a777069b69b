"""`anatogen evaluate`: measures synthetic scans against real ones and writes the report."""

from dataclasses import dataclass
from pathlib import Path

from anatogen.core.devices import device_named
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file
from anatogen.dataset.manifest import MANIFEST_NAME, Split, load_manifest
from anatogen.dataset.scan_sets import ScanSet, folder_and_split, identical_scans, load_scans
from anatogen.evaluation.answers import diversity_answer, fidelity_answer, privacy_answer
from anatogen.evaluation.diversity import measure_diversity
from anatogen.evaluation.fidelity.measure import QUICK_SLICES, measure_fidelity
from anatogen.evaluation.privacy.audit import audit
from anatogen.evaluation.report import (
    AUDIT,
    CACHE,
    Report,
    about_scans,
    clear_report,
    open_report_folder,
    write_report,
)
from anatogen.evaluation.sections import (
    LIMITS,
    diversity_section,
    fidelity_section,
    privacy_section,
    scans_section,
)
from anatogen.generators.bundle import Bundle
from anatogen.generators.loading import load_bundle
from anatogen.report.numbers import times
from anatogen.report.progress import Progress, silent
from anatogen.report.rows import Row
from anatogen.report.verdicts import Answer

# Pairs of scans that a quick evaluation looks at, at most.
QUICK_PAIRS = 200
_HOW_QUICK = (
    f" The quick evaluation: {QUICK_SLICES} slices a plane, few pairs, no Fréchet distances of slices, no "
    "privacy audit. Its kernel distances are to be compared with those of other quick ones only."
)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        rows: Every number.
        answers: To the report's three questions.
        page: The path of `report.html`.
    """

    rows: list[Row]
    answers: list[Answer]
    page: Path


class TooFewScansError(UserError):
    """A set is too small to be judged."""


def evaluate(
    real: Path | str,
    synthetic: Path | str,
    out: Path | str,
    *,
    train: Path | str | None = None,
    holdout: Path | str | None = None,
    bundle: Path | str | None = None,
    medicalnet: Path | str | None = None,
    num_pairs: int = 1000,
    quick: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> Evaluation:
    """Measures fidelity, diversity and privacy of synthetic scans, and writes a report.

    Where `real` is a prepared dataset without a split, its test scans are the real and the held-out ones, and
    copies of its training scans are looked for. Features are cached in the report's folder, so that the
    same call again is quick. Equal scans, settings and seed give an equal `report.json` but for "created".

    The arguments are those of `anatogen.evaluate`, which explains them.

    Raises:
        TooFewScansError: If there are fewer than 4 scans, or fewer than 2 training scans.
        UserError: If a folder holds no scans, scans differ in grid or modality, sets that must be apart share
            scans, the bundle is for others, there is no such device, the report's folder holds something else
            or lies among scans, or a quick evaluation is given what only the others use.
    """
    out = Path(out)
    if seed < 0:
        raise UserError(f"seed is {seed}: it must be at least 0")
    for scans in (real, synthetic, train, holdout):
        if scans is not None and out.resolve().is_relative_to(folder_and_split(Path(scans))[0].resolve()):
            raise UserError(f"{out} lies among the scans of {scans}: choose another folder for the report")
    if num_pairs < 1:
        raise UserError(f"pairs is {num_pairs}: it must be at least 1")
    if quick and (train, holdout, bundle, medicalnet) != (None,) * 4:
        raise UserError(
            "--quick leaves out --train, --holdout, --bundle and --medicalnet: so do, or leave it out"
        )
    where = device_named(device)
    real, train, holdout = _roles(Path(real), _path(train), _path(holdout), quick)
    if bundle is not None and train is None:
        raise UserError(f"the bundle {bundle} is for the privacy audit: give --train and --holdout too")
    if medicalnet is not None and not Path(medicalnet).is_file():
        raise UserError(f"{medicalnet} is no file: give a MedicalNet weights file (.pth), or leave it out")
    real_scans = load_scans(real, "real")
    synthetic_scans = load_scans(Path(synthetic), "synthetic", real_scans)
    train_scans = None if train is None else load_scans(train, "train", real_scans)
    holdout_scans = None if holdout is None else load_scans(holdout, "holdout", real_scans)
    generator = None if bundle is None else load_bundle(bundle).to(where)
    # All here, before minutes of work.
    _check_sets(real_scans, synthetic_scans, train_scans, holdout_scans, generator)
    open_report_folder(out)

    fidelity = measure_fidelity(
        real_scans,
        synthetic_scans,
        seed=seed,
        cache=out / CACHE,
        medicalnet=_path(medicalnet),
        quick=quick,
        device=where,
        progress=progress,
    )
    if quick:
        num_pairs = min(num_pairs, QUICK_PAIRS)
    diversity, details = measure_diversity(
        real_scans, synthetic_scans, seed=seed, num_pairs=num_pairs, published=not quick, progress=progress
    )
    found = None
    if train_scans is not None and holdout_scans is not None:
        found = audit(
            train_scans,
            holdout_scans,
            synthetic_scans,
            bundle=generator,
            seed=seed,
            out=out / AUDIT,
            cache=out / CACHE,
            device=where,
            progress=progress,
        )
    diversity = [*diversity, _repeated_row(synthetic_scans)]
    privacy = [_identical_row(real_scans, synthetic_scans, train_scans), *(found.rows if found else ())]
    answers = [
        fidelity_answer(fidelity),
        diversity_answer(diversity),
        privacy_answer(found.finding if found else None, quick),
    ]
    figures = clear_report(out, keep=(AUDIT,) if found else ())
    sections = [
        scans_section(real_scans, synthetic_scans, figures, seed),
        fidelity_section(fidelity, real_scans, synthetic_scans, figures),
        diversity_section(diversity, details, figures),
        privacy_section(privacy, found, figures, quick),
    ]
    sets = [real_scans, synthetic_scans, train_scans, holdout_scans]
    shape, spacing = (times(along, "×") for along in (real_scans.grid.shape, real_scans.grid.spacing_mm))
    hashes = {} if generator is None else {"bundle": generator.sha256}
    if medicalnet is not None:
        hashes["medicalnet"] = sha256_file(Path(medicalnet))
    report = Report(
        title=f"{len(synthetic_scans)} synthetic scans against {len(real_scans)} real ones",
        summary=f"{real_scans.modality}, {shape} voxels of {spacing} mm.{_HOW_QUICK if quick else ''}",
        answers=answers,
        sections=sections,
        settings={
            "seed": seed,
            "pairs": num_pairs,
            "quick": "yes" if quick else "no",
            "privacy_audit": "yes" if found else "no",
        },
        inputs={scans.role: about_scans(scans) for scans in sets if scans is not None},
        input_hashes=hashes,
        limits=LIMITS,
        details={"diversity": details},
    )
    return Evaluation([*fidelity, *diversity, *privacy], answers, write_report(report, out))


def describe_roles(
    real: Path, train: Path | None = None, holdout: Path | None = None, *, quick: bool = False
) -> str | None:
    """A line that says which split of a prepared dataset takes which part; None where nothing is assumed."""
    tested, known, _ = _roles(real, train, holdout, quick)
    if tested == real:
        return None
    if known is None:
        return f"real scans: {tested}"
    return f"real and held-out scans: {tested}; copies are looked for of {known}"


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)


def _roles(
    real: Path, train: Path | None, holdout: Path | None, quick: bool
) -> tuple[Path, Path | None, Path | None]:
    """Places of the real, training and held-out scans; the last two are both known or both None."""
    if (train is None) != (holdout is None):
        given, missing = ("--train", "--holdout") if holdout is None else ("--holdout", "--train")
        raise UserError(f"{given} was given without {missing}: the privacy audit needs both")
    if train is not None or not (real / MANIFEST_NAME).is_file():
        return real, train, holdout
    splits = {case.split for case in load_manifest(real).cases}
    if not {Split.TRAIN, Split.TEST} <= splits:
        return real, None, None
    test = Path(f"{real}:{Split.TEST}")
    return (test, None, None) if quick else (test, Path(f"{real}:{Split.TRAIN}"), test)


def _check_sets(
    real: ScanSet,
    synthetic: ScanSet,
    train: ScanSet | None,
    holdout: ScanSet | None,
    bundle: Bundle | None,
) -> None:
    """A UserError if sets are too small, share scans so that their comparison is void, or don't fit."""
    for scans, least in ((real, 4), (synthetic, 4), (train, 2), (holdout, 4)):
        if scans is not None and len(scans) < least:
            raise TooFewScansError(
                f"there are {len(scans)} {scans.role} scans: {least} are needed at least, 100 are better"
            )
    if identical_scans(synthetic, real) == len(synthetic):
        raise UserError(
            "every synthetic scan is also a real scan, so nothing is compared: give the folder of the "
            "generated scans as SYNTHETIC"
        )
    if train is None or holdout is None:
        return
    for name, scans in (("REAL", real), ("--holdout", holdout)):
        shared = identical_scans(scans, train)
        if shared:
            raise UserError(
                f"{shared} of {len(scans)} scans of {name} are training scans too: give scans that the "
                "generator was not trained on"
            )
    if bundle is not None:
        bundle.require_fit(train)


def _repeated_row(synthetic: ScanSet) -> Row:
    repeated = len(synthetic) - len(set(synthetic.hashes))
    notes = ("voxel for voxel", *(["they count in every other number"] if repeated else []))
    return Row(
        "diversity", "repeated_scans", "Synthetic scans that repeat another", float(repeated), notes=notes
    )


def _identical_row(real: ScanSet, synthetic: ScanSet, train: ScanSet | None) -> Row:
    number = identical_scans(synthetic, real) + (0 if train is None else identical_scans(synthetic, train))
    return Row(
        "privacy",
        "identical_scans",
        "Synthetic scans that are a real scan",
        float(number),
        notes=("voxel for voxel", *(["a real scan lies among the synthetic ones"] if number else [])),
    )
