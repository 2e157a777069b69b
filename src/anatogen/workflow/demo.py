"""`anatogen demo`: the whole way on embedded data, through the very calls that the commands make."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from anatogen.config.presets import training_settings
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Split, load_manifest
from anatogen.dataset.prepare import PrepareConfig, prepare
from anatogen.dataset.volumes import VolumeDataset
from anatogen.generators.description import read_description
from anatogen.generators.loading import load_bundle
from anatogen.generators.shipped import bundle_folder
from anatogen.io.nifti import read_nifti
from anatogen.report.figures import curves_figure
from anatogen.report.numbers import duration_text
from anatogen.report.page import data_url, write_page
from anatogen.training.flow import FLOW
from anatogen.training.loop import read_log
from anatogen.training.train import train
from anatogen.workflow.brains import make_brains
from anatogen.workflow.page import planes_of
from anatogen.workflow.request import INDEX_NAME

NUM_SCANS = 300
NUM_SAMPLES = 16
_NUM_SHOWN = 8
# What comes with the package: the same preset after longer, on more such brains.
_LONGER = "brains-mr"
# Of the budget, what is left for making and preparing scans, the test of membership, sampling and the page:
# what they take on two cores, but never more than half.
_OTHER_MINUTES = 1.5
_NEXT_STEPS = [
    "# your folder of NIfTI, NRRD, MetaImage, NPY or DICOM scans",
    "anatogen prepare MY_SCANS my_data",
    "# what it will take, before it is started",
    "anatogen train my_data my_run --dry-run --minutes 60",
    "anatogen train my_data my_run --minutes 60",
    "anatogen sample my_run/bundle my_synthetic_scans -n 100 --seed 0",
]


def run_demo(folder: Path, minutes: float = 10.0) -> Path:
    """Makes brains, prepares them, trains, samples, and writes a page about it.

    A demo that was stopped goes on where it stopped.

    Args:
        folder: Where everything goes.
        minutes: How long all of it may take, about.

    Returns:
        The page, `index.html`.

    Raises:
        UserError: If the template that the brains are made from is not installed, or minutes can't be.
    """
    if minutes <= 0:
        raise UserError(f"minutes is {minutes}: it must be above 0")
    training = max(minutes / 2, minutes - _OTHER_MINUTES)
    scans, data, synthetic = folder / "scans", folder / "data", folder / f"synthetic_{minutes:g}min"
    run, longer = folder / f"run_{minutes:g}min", folder / f"synthetic_{_LONGER}"
    settings = training_settings(minutes=training)
    steps: list[tuple[str, str, Callable[[], object]]] = [
        (
            "Make scans",
            f"# {NUM_SCANS} brains, made by deforming the MNI152 template; they stand in for real scans",
            lambda: make_brains(scans, NUM_SCANS),
        ),
        ("Prepare", f"anatogen prepare {scans} {data}", lambda: prepare(scans, data, PrepareConfig())),
        (
            "Train",
            f"anatogen train {data} {run} --minutes {training:g}",
            lambda: train(data, run, settings),
        ),
        (
            "Sample",
            f"anatogen sample {run / 'bundle'} {synthetic} -n {NUM_SAMPLES} --seed 0",
            lambda: load_bundle(run / "bundle").write(synthetic, num_samples=NUM_SAMPLES, device="auto"),
        ),
        (
            "Sample a longer training",
            f"anatogen sample {_LONGER} {longer} -n {_NUM_SHOWN} --seed 0",
            lambda: load_bundle(_LONGER).write(longer, num_samples=_NUM_SHOWN, device="auto"),
        ),
    ]
    timings: dict[str, float] = {}
    for name, command, work in steps:
        print(f"\n{command}", flush=True)
        started = time.perf_counter()
        work()
        timings[name] = time.perf_counter() - started
    # A training that an earlier call finished took its time then.
    history = read_log(run / FLOW.name)
    timings["Train"] = max(timings["Train"], 60 * history[-1]["minutes"])
    page = folder / INDEX_NAME
    _write_page(page, data, run, synthetic, longer, history, timings, [command for _, command, _ in steps])
    print(f"\nopen {page}", flush=True)
    return page


def _write_page(
    page: Path,
    data: Path,
    run: Path,
    synthetic: Path,
    longer: Path,
    history: Sequence[Mapping[str, float]],
    timings: Mapping[str, float],
    commands: Sequence[str],
) -> None:
    manifest = load_manifest(data)
    bundle = load_bundle(run / "bundle")
    held_out = VolumeDataset(data, Split.TEST)
    real = held_out.batch(range(min(_NUM_SHOWN, len(held_out))))
    sources = {"Real scans": list(real[:, 0].numpy())}
    folders = {"Synthetic scans": synthetic, "Synthetic scans after a longer training": longer}
    for label, samples in folders.items():
        paths = sorted(samples.glob("*.nii.gz"))[:_NUM_SHOWN]
        sources[label] = [manifest.intensity.normalise(read_nifti(path).array) for path in paths]
    with tempfile.TemporaryDirectory() as scratch:
        curves_figure(history, Path(scratch) / "curves.png")
        curves = data_url(Path(scratch) / "curves.png")
    total = sum(timings.values())
    write_page(
        page,
        "demo.html",
        planes=planes_of(list(sources.items()), manifest.grid),
        sources=list(sources),
        longer=read_description(bundle_folder(_LONGER)).release,
        grid=manifest.grid,
        curves=curves,
        timings=[(name, duration_text(time), 100 * time / total) for name, time in timings.items()],
        total=duration_text(total),
        numbers={
            "Training scans": str(len(manifest.split(Split.TRAIN))),
            "Generator": f"{bundle.num_parameters / 1e6:.1f} M parameters",
            "Training steps": f"{history[-1]['step']:,.0f}",
            "Sampling": f"{timings['Sample'] / NUM_SAMPLES:.2f} s a scan, {NUM_SAMPLES} scans",
        },
        commands=commands,
        next_steps=_NEXT_STEPS,
    )
