"""Many readers at once: how long the study's server takes to save an answer, and whether it loses any.

    python -m benchmarks.study_load --readers 20 --cases 100

Starts `anatogen study serve` on a study of small volumes, made for it, and reads it with one HTTP client a
reader, each of which opens its page's data, fetches every volume, and answers every question, `--pause`
seconds after the last answer was saved. Without a pause all are always waiting: that measures what the disk
can do.
"""

import argparse
import asyncio
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from scipy import ndimage

from anatogen import new_study
from anatogen.study.analysis.answers import read_answers
from anatogen.study.store import all_readers, open_study

SHAPE = (32, 64, 64)


def make_study(folder: Path, num_readers: int, num_cases: int) -> dict[str, str]:
    """A study of noise, half of it called real; gives each reader's token."""
    rng = np.random.default_rng(0)
    for source in ("real", "synthetic"):
        (folder / source).mkdir()
        for case in range(num_cases // 2):
            noise = ndimage.gaussian_filter(rng.standard_normal(SHAPE).astype(np.float32), 2)
            np.save(folder / source / f"{case:03d}.npy", noise)
    names = [f"reader{number:02d}" for number in range(num_readers)]
    new_study(
        folder / "study",
        folder / "synthetic",
        real=folder / "real",
        readers=names,
        num_cases=num_cases // 2,
        repeat=0,
        seed=0,
        allow_leaks=True,
    )
    study = open_study(folder / "study")
    with study.session() as session:
        return {reader.name: reader.token for reader in all_readers(session)}


async def read_all(
    url: str, token: str, pause: float, saving: list[float], fetching: list[float]
) -> dict[Any, int]:
    """Reads a whole study; gives what was acknowledged, by (item, question)."""
    acknowledged = {}
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        told = (await client.get("/api/study")).json()
        questions = {protocol["id"]: protocol["questions"] for protocol in told["protocols"]}
        for item in told["items"]:
            before = time.perf_counter()
            (await client.get(f"/api/items/{item['id']}/left")).raise_for_status()
            fetching.append(time.perf_counter() - before)
            for number, question in enumerate(questions[item["protocol"]]):
                value = question["options"][number % 4]["value"]
                answer = {
                    "item_id": item["id"],
                    "question": question["id"],
                    "value": value,
                    "client_id": str(uuid4()),
                    "revision": 0,
                    "seconds_active": 1.0,
                    "seconds_idle": 0.0,
                }
                # Readers don't answer in step.
                await asyncio.sleep(random.uniform(0, 2 * pause))
                before = time.perf_counter()
                (await client.post("/api/answers", json=answer)).raise_for_status()
                saving.append(time.perf_counter() - before)
                acknowledged[item["id"], question["id"]] = value
    return acknowledged


def start_server(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """The server in a process of its own, once it answers."""
    code = "from anatogen.cli.app import main; main()"
    command = [sys.executable, "-c", code, "study", "serve", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    while server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.05)
    raise RuntimeError("the server does not start")


async def measure(url: str, tokens: dict[str, str], pause: float) -> dict[Any, int]:
    """All readers at once; prints times and gives all that was acknowledged."""
    saving: list[float] = []
    fetching: list[float] = []
    before = time.perf_counter()
    found = await asyncio.gather(
        *(read_all(url, token, pause, saving, fetching) for token in tokens.values())
    )
    seconds = time.perf_counter() - before
    rate = len(saving) / seconds
    print(f"{len(tokens)} readers, {len(saving)} answers in {seconds:.0f} s, {rate:.0f} a second")
    for name, times in (("saving an answer", saving), ("fetching a volume", fetching)):
        p50, p95, p99, most = (1000 * np.quantile(times, q) for q in (0.5, 0.95, 0.99, 1))
        print(f"{name}: median {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms, most {most:.0f} ms")
    return {place: value for part in found for place, value in part.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--pause", type=float, default=1.0, help="Seconds before each answer, on average.")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tokens = make_study(Path(name), settings.readers, settings.cases)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
        server = start_server(Path(name) / "study", port)
        try:
            acknowledged = asyncio.run(measure(f"http://127.0.0.1:{port}", tokens, settings.pause))
        finally:
            server.kill()
            server.wait()
        rows = read_answers(Path(name) / "study")
        stored = {(row.item, row.question): row.value for row in rows if row.value is not None}
        lost = sum(stored.get(place) != value for place, value in acknowledged.items())
        print(f"{len(stored)} stored, {lost} lost, {len(rows) - len(stored)} unanswered")


if __name__ == "__main__":
    main()
