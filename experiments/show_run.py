"""Figure and numbers of a trained run: real and synthetic scans, not chosen.

python experiments/show_run.py DATA SYNTHETIC FIGURE.png

DATA is a prepared dataset, SYNTHETIC a folder of NIfTI scans of a generator that learned from it.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anatogen.dataset.manifest import Split
from anatogen.dataset.volumes import VolumeDataset
from anatogen.io.nifti import read_nifti
from anatogen.report.volume_figures import planes_figure

_NUM_SHOWN = 6


def main() -> None:
    """Writes the figure and prints the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("data", "synthetic", "figure"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    test, train = (VolumeDataset(arguments.data, split) for split in (Split.TEST, Split.TRAIN))
    grid, intensity = test.manifest.grid, test.manifest.intensity
    real = test.batch(range(len(test)))[:, 0].numpy()
    synthetic = [
        intensity.normalise(read_nifti(path).array) for path in sorted(arguments.synthetic.glob("*.nii.gz"))
    ]
    planes_figure(
        [("real, held out", list(real[:_NUM_SHOWN])), ("synthetic", synthetic[:_NUM_SHOWN])],
        arguments.figure,
        spacing_mm=grid.spacing_mm,
        axis_codes=grid.axis_codes,
    )
    training = list(train.batch(range(len(train)))[:, 0].numpy())
    print(f"{len(synthetic)} synthetic scans")
    for name, volumes in (("real, held out", list(real)), ("synthetic", synthetic)):
        nearest = _nearest_correlations(volumes, training)
        stacked = np.stack(volumes)
        print(
            f"{name}: highest correlation with a training scan, mean {nearest.mean():.3f}, largest "
            f"{nearest.max():.3f}; mean {stacked.mean():.3f}, std {stacked.std():.3f}"
        )


def _nearest_correlations(
    volumes: list[npt.NDArray[np.float32]], training: list[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float64]:
    """Each volume's highest Pearson correlation with a training volume, as it is or mirrored left-right."""
    unit = [_unit(array) for array in training] + [_unit(array[:, :, ::-1]) for array in training]
    return np.array([max(float(_unit(volume) @ other) for other in unit) for volume in volumes])


def _unit(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    centred = array.ravel() - array.mean()
    return centred / np.linalg.norm(centred)


if __name__ == "__main__":
    main()
