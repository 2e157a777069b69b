"""What pyproject.toml can't say: the reader study's viewer is fetched while the package is built."""

import importlib.util
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithViewer(build_py):
    """Builds the Python files after fetching NiiVue; without npm or a network it goes on without."""

    def run(self) -> None:
        """Fetches, then builds."""
        spec = importlib.util.spec_from_file_location(
            "niivue", ROOT / "src" / "anatogen" / "study" / "niivue.py"
        )
        assert spec is not None and spec.loader is not None
        niivue = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(niivue)
        problem = niivue.fetch()
        if problem is not None:
            self.warn(f"built without NiiVue, so `anatogen study serve` won't start: {problem}")
        super().run()


setup(cmdclass={"build_py": BuildWithViewer})
