"""`anatogen study new`: from folders of scans to a blinded study, checked for what gives sources away."""

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from anatogen.config.resolving import save_yaml
from anatogen.core.errors import UserError
from anatogen.core.files import atomic_folder, write_json
from anatogen.core.seeding import derived_generator
from anatogen.dataset.manifest import Intensity
from anatogen.dataset.scan_sets import ScanSet, count_scans, identical_scans, load_scans
from anatogen.io.geometry import centred_affine
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume
from anatogen.report.progress import Progress, silent
from anatogen.study import leaks
from anatogen.study.blinding import Blinding, blinded, blindings
from anatogen.study.orders import random_names, reader_items, shuffled
from anatogen.study.questions import Protocol, load_protocols
from anatogen.study.spec import (
    KEY_NAME,
    LEAKS_NAME,
    SPEC_NAME,
    VOLUME_TIME,
    Source,
    StudySpec,
    volume_path,
)
from anatogen.study.store import Reader, create_study, new_token

# As many as the paper showed of each dataset.
USUAL_NUM_CASES = 50
MAX_REPEAT = 0.5


@dataclass(frozen=True)
class NewStudy:
    """A study that was made.

    Attributes:
        folder: Folder of the study.
        spec: Content of study.yaml.
        num_items: Number of items that each reader is shown, repeats included.
        how: Way in which scans were made alike.
        check: Result of the search for what still tells sources apart.
    """

    folder: Path
    spec: StudySpec
    num_items: int
    how: Blinding
    check: leaks.LeakCheck

    @property
    def summary(self) -> str:
        """What was made, and what is known of its blinding, in a few lines."""
        counts = self.spec.num_cases or {}
        listed = ", ".join(f"{count} {source}" for source, count in counts.items())
        num_readers = len(self.spec.readers)
        whom = "the reader" if num_readers == 1 else f"each of {num_readers} readers"
        lines = [
            f"{self.folder}: {listed}; {self.num_items} cases for {whom}, repeats included",
            f"made alike: {self.how}",
        ]
        if self.check.status is leaks.BlindingStatus.UNTESTED:
            why = (
                "there is one source only"
                if len(counts) == 1
                else f"it takes {leaks.LEAST_SCANS} scans of each source"
            )
            lines.append(f"blinding: not tested, for {why}")
        elif self.check.status is leaks.BlindingStatus.PASSED:
            lines.append(
                "blinding: file size, header and simple statistics don't tell sources apart "
                f"({self.check.accuracy:.0%} balanced accuracy, chance is {self.check.chance:.0%}, "
                f"p = {self.check.p_value:.2g})"
            )
        else:
            lines.append(f"blinding: NOT ACHIEVED: sources can be told apart by {self.check.finding}")
        if self.check.visible:
            seen = "; ".join(map(str, self.check.visible))
            lines.append(f"part of the picture, and so left for readers to see: {seen}")
        return "\n".join(lines)


def new_study(
    study: Path | str,
    synthetic: Path | str,
    *,
    real: Path | str | None,
    reconstructed: Path | str | None,
    readers: Sequence[str],
    protocols: Sequence[str],
    num_cases: int | None,
    repeat: float,
    seed: int | None,
    title: str,
    allow_leaks: bool,
    progress: Progress,
) -> NewStudy:
    """Makes a blinded reader study, with the options of `anatogen.new_study`, which explains them.

    Raises:
        UserError: If settings are wrong, scans can't be read or are not on one grid, or storage gives sources
            away and nothing could be done about it.
    """
    folder = Path(study)
    chosen_protocols = load_protocols(protocols)
    paths: dict[Source, Path] = {}
    for source, path in (("real", real), ("reconstructed", reconstructed), ("synthetic", synthetic)):
        if path is not None:
            paths[source] = Path(path)  # type: ignore[index]
    names = _reader_names(readers)
    _check_settings(folder, chosen_protocols, paths, repeat)
    seed = secrets.randbelow(1 << 62) if seed is None else seed
    scans = _load(paths, num_cases, seed, progress)
    sources = [source for source, scan_set in scans.items() for _ in range(len(scan_set))]
    arrays = np.concatenate([scan_set.arrays for scan_set in scans.values()])
    first = next(iter(scans.values()))
    how = _mildest_blinding(arrays, sources, first.intensity, seed, progress)
    cases = random_names(len(arrays), seed, "cases")
    # Files lie in the order of their names on the disk too, which must not be that of the sources.
    with atomic_folder(folder) as part:
        _write_volumes(part, dict(zip(cases, arrays, strict=True)), how, first, seed, progress)
        key = dict(zip(cases, sources, strict=True))
        hashes = [digest for scan_set in scans.values() for digest in scan_set.hashes]
        check = check_files(part, key, at_percentiles=how.at_percentiles, seed=seed, progress=progress)
        if not check.passed and not allow_leaks:
            raise UserError(
                f"sources can be told apart without looking at the picture, by {check.finding}: prepare all "
                "scans in the same way, or accept it with --allow-leaks"
            )
        spec = StudySpec(
            id=secrets.token_hex(8),
            title=title,
            protocols=chosen_protocols,
            readers=names,
            modality="CT" if first.modality == "CT" else "MR",
            shape=how.kept,
            spacing_mm=first.grid.spacing_mm,
            window=how.stored_window,
            num_cases={source: len(scan_set) for source, scan_set in scans.items()},
            repeat=repeat,
            seed=seed,
        )
        save_yaml(spec, part / SPEC_NAME)
        entries = {
            case: {"source": source, "sha256": digest}
            for case, source, digest in zip(cases, sources, hashes, strict=True)
        }
        write_json(part / KEY_NAME, {"format_version": 1, "study": spec.id, "cases": entries})
        write_json(part / LEAKS_NAME, {"blinding": str(how), "passed": check.passed, **asdict(check)})
        num_items = _write_database(part, spec, key)
    return NewStudy(folder, spec, num_items, how, check)


def check_files(
    folder: Path, key: Mapping[str, Source], *, at_percentiles: bool, seed: int, progress: Progress = silent
) -> leaks.LeakCheck:
    """Tests whether a study's volumes, as readers get them, tell their sources apart by how they are stored.

    Args:
        folder: Folder of the study.
        key: Source of each case.
        at_percentiles: Whether scans were clipped at percentiles of their own.
        seed: Random seed of the relabelling.
        progress: Called with what is being done, and how far it is.
    """
    storage, picture = [], []
    for number, case in enumerate(key, 1):
        path = volume_path(folder, case)
        stored, seen = leaks.features(leaks.read_voxels(path), at_percentiles=at_percentiles)
        storage.append(leaks.file_features(path) | stored)
        picture.append(seen)
        progress("Checking that only the picture tells sources apart", number, len(key))
    return leaks.check(leaks.table_of(storage), leaks.table_of(picture), list(key.values()), seed)


def _reader_names(readers: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in readers)
    if not names or len(set(names)) < len(names):
        raise UserError(f"readers {', '.join(names) or '(none)'}: name one or more, each once")
    for name in names:
        if not 0 < len(name) <= 64 or not name.isprintable():
            raise UserError(f"reader {name!r}: a name has 1 to 64 printable characters")
    return names


def _check_settings(
    folder: Path, protocols: Sequence[Protocol], paths: Mapping[Source, Path], repeat: float
) -> None:
    if folder.exists():
        raise UserError(f"{folder} exists: choose another folder for the study, or remove it")
    if not 0 <= repeat <= MAX_REPEAT:
        raise UserError(f"repeat is {repeat:g}: it must be from 0 to {MAX_REPEAT:g}, 0.1 to 0.2 is usual")
    for protocol in protocols:
        asks = any(question.id == "real_or_synthetic" for question in protocol.questions)
        if "real" not in paths and (protocol.kind == "pair" or asks):
            raise UserError(f"protocol {protocol.id!r} needs real scans too: name them with --real")


def _load(
    paths: Mapping[Source, Path], num_cases: int | None, seed: int, progress: Progress
) -> dict[Source, ScanSet]:
    """The chosen scans of every source, the real ones first: others are brought to their axes and window."""
    counts = {source: count_scans(path, source) for source, path in paths.items()}
    wanted = min(USUAL_NUM_CASES, *counts.values()) if num_cases is None else num_cases
    if wanted < 1:
        raise UserError(f"num_cases is {wanted}: it must be at least 1")
    for source, count in counts.items():
        if count < wanted:
            raise UserError(
                f"{paths[source]} holds {count} {source} scans, and {wanted} are asked for: lower num_cases"
            )
    scans: dict[Source, ScanSet] = {}
    for number, (source, path) in enumerate(paths.items()):
        progress("Reading scans", number * wanted, len(paths) * wanted)
        indices = sorted(shuffled(counts[source], seed, "choice", source)[:wanted])
        scans[source] = load_scans(path, source, next(iter(scans.values()), None), indices)
    progress("Reading scans", len(paths) * wanted, len(paths) * wanted)
    for other, source in combinations(scans, 2):
        if same := identical_scans(scans[source], scans[other]):
            raise UserError(
                f"{same} of the {source} scans are {other} ones, voxel for voxel: {paths[source]} and "
                f"{paths[other]} must hold different scans"
            )
    return scans


def _mildest_blinding(
    arrays: np.ndarray, sources: Sequence[Source], intensity: Intensity, seed: int, progress: Progress
) -> Blinding:
    """The mildest blinding that leaves no suspicion of a difference in storage, else the fewest."""
    found: list[tuple[int, int, Blinding]] = []
    for how in blindings(arrays, intensity):
        rows = []
        for index, array in enumerate(arrays):
            volume = blinded(array, how, _noise(seed, index))
            rows.append(leaks.features(volume, at_percentiles=how.at_percentiles)[0])
            progress("Making scans alike", index + 1, len(arrays))
        # With few scans a leak is hardly significant: what may be one is mended.
        generator = np.random.default_rng(seed)
        differences = leaks.differing(leaks.table_of(rows), sources, generator, leaks.SUSPICION)
        if not differences:
            return how
        found.append((len(differences), len(found), how))
    return min(found)[2]


def _noise(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng(derived_generator(seed, "levels", index).initial_seed())


def _write_volumes(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    how: Blinding,
    scans: ScanSet,
    seed: int,
    progress: Progress,
) -> None:
    """Writes the volumes in the order of their names, with one header and time."""
    affine = centred_affine("".join(scans.grid.axis_codes), how.kept, scans.grid.spacing_mm)
    indices = {case: index for index, case in enumerate(arrays)}
    for number, case in enumerate(sorted(arrays), 1):
        volume = blinded(arrays[case], how, _noise(seed, indices[case]))
        path = volume_path(folder, case)
        write_nifti(Volume(volume.astype(np.float32), affine), path, np.int16)
        os.utime(path, (VOLUME_TIME, VOLUME_TIME))
        progress("Writing blinded volumes", number, len(arrays))


def _write_database(folder: Path, spec: StudySpec, key: Mapping[str, Source]) -> int:
    assert spec.repeat is not None and spec.seed is not None
    study = create_study(folder, spec, new_token())
    num_items = 0
    with study.session() as session:
        for number, name in enumerate(spec.readers, 1):
            session.add(Reader(id=number, name=name, token=new_token()))
            session.flush()
            # Cases by name: not even the order of equal draws follows the sources.
            items = reader_items(
                number, name, dict(sorted(key.items())), spec.protocols, repeat=spec.repeat, seed=spec.seed
            )
            session.add_all(items)
            num_items = len(items)
        session.commit()
    study.engine.dispose()
    return num_items
