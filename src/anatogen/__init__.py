"""Anatogen turns a folder of 3D medical scans into a generator of new ones.

The short way: `doctor` looks at a folder of scans, `plan` decides what to make of it, `prepare` makes a
dataset, `train` a generator, `load_bundle(...).sample(...)` or `sample` to disk, `evaluate` what came out;
`run` does all of it. `WaveletFlowSettings`, `LatentDiffusionSettings`, `GANConfig` and `PrepareConfig` hold
all that can be set; a `Volume` is a scan, a `VolumeDataset` the scans of a prepared dataset. Each name is
imported when it is first used, so that `import anatogen` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anatogen.core.version import __version__

if TYPE_CHECKING:
    from anatogen.api.downstream import finetune, measure_segmenter, predict, pretrain, run_experiment
    from anatogen.api.generators import (
        compare_autoencoders,
        evaluate,
        reconstruct,
        sample,
        train,
        train_gan,
    )
    from anatogen.api.scans import doctor, plan, prepare, run
    from anatogen.api.study import analyse_study, compare_studies, export_study, import_study, new_study
    from anatogen.config.settings import GANConfig, LatentDiffusionSettings, WaveletFlowSettings
    from anatogen.core.errors import UserError
    from anatogen.dataset.prepare_config import PrepareConfig
    from anatogen.dataset.volumes import VolumeDataset
    from anatogen.generators.loading import load_bundle
    from anatogen.io.volume import Volume

__all__ = [
    "GANConfig",
    "LatentDiffusionSettings",
    "PrepareConfig",
    "UserError",
    "Volume",
    "VolumeDataset",
    "WaveletFlowSettings",
    "__version__",
    "analyse_study",
    "compare_autoencoders",
    "compare_studies",
    "doctor",
    "evaluate",
    "export_study",
    "finetune",
    "import_study",
    "load_bundle",
    "measure_segmenter",
    "new_study",
    "plan",
    "predict",
    "prepare",
    "pretrain",
    "reconstruct",
    "run",
    "run_experiment",
    "sample",
    "train",
    "train_gan",
]

_HOMES = {
    "api.downstream": ("finetune", "measure_segmenter", "predict", "pretrain", "run_experiment"),
    "api.generators": ("compare_autoencoders", "evaluate", "reconstruct", "sample", "train", "train_gan"),
    "api.scans": ("doctor", "plan", "prepare", "run"),
    "api.study": ("analyse_study", "compare_studies", "export_study", "import_study", "new_study"),
    "config.settings": ("GANConfig", "LatentDiffusionSettings", "WaveletFlowSettings"),
    "core.errors": ("UserError",),
    "dataset.prepare_config": ("PrepareConfig",),
    "dataset.volumes": ("VolumeDataset",),
    "generators.loading": ("load_bundle",),
    "io.volume": ("Volume",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"anatogen.{home}"), name)
    raise AttributeError(f"module 'anatogen' has no attribute {name!r}")
