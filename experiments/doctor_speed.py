"""Time and memory of `anatogen doctor` on many small files, written into a temporary folder.

    python experiments/doctor_speed.py --slices 10000 --nifti 3000

They have just been written, so the disk is warm. Memory is the largest resident set of the process and of its
largest worker.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from anatogen.doctor.examine import examine
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume

SLICES_A_SERIES = 20


def write_scans(folder: Path, num_slices: int, num_nifti: int, size: int) -> None:
    """Writes DICOM series of 20 slices and NIfTI files, each of noise of its own."""
    generator = np.random.default_rng(0)
    for number in range(num_slices // SLICES_A_SERIES + num_nifti):
        array = generator.integers(0, 1000, (SLICES_A_SERIES, size, size)).astype(np.float32)
        affine = np.zeros((4, 4))
        affine[[2, 1, 0, 3], [0, 1, 2, 3]] = [1, -1, -1, 1]
        volume = Volume(array, affine)
        if number < num_slices // SLICES_A_SERIES:
            name = f"series_{number:05d}"
            write_dicom(volume, folder / name, "MR", uid_from=name, patient_id=name)
        else:
            write_nifti(volume, folder / f"scan_{number:05d}.nii.gz")


def measure(folder: Path, headers_only: bool, workers: int | None) -> None:
    """Prints seconds and memory of one call in this process."""
    started = time.perf_counter()
    diagnosis = examine(folder, headers_only=headers_only, workers=workers, progress=False)
    seconds = time.perf_counter() - started
    own, children = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    what = "headers" if headers_only else "headers and voxels"
    number = len(diagnosis.facts.scans)
    print(f"{what}: {seconds:.1f} s, {number} scans, peak {own:.0f} MB, worker {children:.0f} MB", flush=True)


def main() -> None:
    """Writes the scans, then measures in fresh processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=10_000)
    parser.add_argument("--nifti", type=int, default=3_000)
    parser.add_argument("--size", type=int, default=16, help="rows and columns")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--headers-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure, arguments.headers_only, arguments.workers)
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_scans(Path(scratch), arguments.slices, arguments.nifti, arguments.size)
        for options in (["--headers-only"], []):
            command = [sys.executable, __file__, "--measure", scratch, *options]
            if arguments.workers is not None:
                command += ["--workers", str(arguments.workers)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
