"""Anatogen turns a folder of 3D medical scans into a generator of new ones.

The short way: `doctor` looks at a folder of scans, `plan` decides what to make of it, `prepare` makes a
dataset, `train` a generator, `load_bundle(...).sample(...)` or `sample` to disk, `evaluate` what came out;
`run` does all of it. `reconstruct` writes what an autoencoder gives back, `new_study` makes a reader study.
Each name is imported when it is first used, so that `import anatogen` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anatogen.core.version import __version__

if TYPE_CHECKING:
    from anatogen.api import doctor, evaluate, plan, prepare, run, train, train_gan
    from anatogen.evaluation.reconstruction.export import reconstruct
    from anatogen.generators.latent_diffusion import load_bundle
    from anatogen.generators.sampling import sample
    from anatogen.study.design import new_study

__all__ = [
    "__version__",
    "doctor",
    "evaluate",
    "load_bundle",
    "new_study",
    "plan",
    "prepare",
    "reconstruct",
    "run",
    "sample",
    "train",
    "train_gan",
]

_HOMES = {
    "doctor": "anatogen.api",
    "evaluate": "anatogen.api",
    "load_bundle": "anatogen.generators.latent_diffusion",
    "new_study": "anatogen.study.design",
    "plan": "anatogen.api",
    "prepare": "anatogen.api",
    "reconstruct": "anatogen.evaluation.reconstruction.export",
    "run": "anatogen.api",
    "sample": "anatogen.generators.sampling",
    "train": "anatogen.api",
    "train_gan": "anatogen.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'anatogen' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
