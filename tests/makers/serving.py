"""A study with phantoms, and its server as users start it, for tests of serving."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from study_maker import make_study

from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume
from anatogen.study.app import make_app
from anatogen.study.spec import VOLUMES, volume_path
from anatogen.study.store import Study, all_readers, items_of, organiser_token

NUM_SLICES = 8
# Of the patient's left half; the right one is darker by this.
STEP_TO_RIGHT = 16


def level(index: int) -> int:
    """Grey level of a phantom's slice; the window is 0 to 255."""
    return 40 + 24 * index


def phantom() -> np.ndarray:
    """int16 (D, H, W), each slice of a level of its own, the patient's right half darker."""
    volume = np.zeros((NUM_SLICES, 12, 10), dtype=np.int16)
    volume += np.array([level(index) for index in range(NUM_SLICES)], dtype=np.int16)[:, None, None]
    # W runs from the patient's left to the right: the affine's first file axis is R.
    volume[:, :, 5:] -= STEP_TO_RIGHT
    return volume


def make_readable_study(folder: Path, **settings: tuple[str, ...]) -> Study:
    """As `make_study`, with volumes, all the same phantom."""
    study = make_study(folder, **settings)
    (folder / VOLUMES).mkdir(exist_ok=True)
    affine = np.zeros((4, 4))
    # Columns are (D, H, W): up, front, right.
    affine[2, 0] = affine[1, 1] = affine[0, 2] = affine[3, 3] = 1
    volume = Volume(phantom().astype(np.float32), affine)
    with study.session() as session:
        cases = {item.case for reader in all_readers(session) for item in items_of(session, reader)}
    for case in cases:
        write_nifti(volume, volume_path(folder, case), np.int16)
    return study


def tokens(study: Study) -> dict[str, str]:
    """The token of each reader by name, and the organiser's under ""."""
    with study.session() as session:
        found = {reader.name: reader.token for reader in all_readers(session)}
        return found | {"": organiser_token(session)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class Server:
    """`anatogen study serve` in a process of its own, for what kills it or is about the command."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        code = "from anatogen.cli.app import main; main()"
        command = [sys.executable, "-c", code, "study", "serve", str(self.folder), "--port", str(self.port)]
        log = self.folder.with_name(f"{self.folder.name}-server.log")
        with log.open("a") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ)
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._process.poll() is None, log.read_text()
            time.sleep(0.05)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        """SIGKILL, as a crash or a lost machine."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server in a process of its own."""
    server = Server(folder, free_port())
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def serving_here(study: Study) -> Iterator[str]:
    """The address of a server in a thread, which starts at once."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(study), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
