"""What made a result: versions and hashes of inputs, written beside it; nothing of patients or hosts."""

import platform
from importlib.metadata import version
from pathlib import Path

from anatogen.core.files import write_json
from anatogen.core.version import __version__

_REPORTED = ("torch", "lightning-fabric", "numpy", "safetensors")


def versions(*libraries: str) -> dict[str, str]:
    """Versions of this package, of Python and of libraries by their names on PyPI."""
    found = {"anatogen": __version__, "python": platform.python_version()}
    return found | {name: version(name) for name in libraries}


def write_provenance(path: Path, inputs: dict[str, str], seed: int) -> None:
    """Writes a run's manifest as JSON, atomically.

    Args:
        path: The file.
        inputs: Hashes of what went in, by name.
        seed: Random seed of the run.
    """
    write_json(path, {"versions": versions(*_REPORTED), "inputs": inputs, "seed": seed})
