"""A real browser for tests: headless Chromium over its DevTools protocol, which a pair of pipes carries."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Whatever the browser asks for by itself (updates, the time) finds no host either.
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
# The protocol's pipes are file descriptors 3 and 4; they are copied out of the way first.
_LAUNCHER = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A tab.

    Attributes:
        requests: Addresses that the page asked for, its own and data: ones left out.
    """

    def __init__(self, read: int, write: int, seconds: float) -> None:
        self.requests: list[str] = []
        self._read, self._write = read, write
        self._deadline = time.monotonic() + seconds
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Network.enable")
        self._call("Page.enable")

    def open(self, path: Path, width: int = 1200) -> None:
        """Opens a file and waits until it and all in it has loaded or failed."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        self._call("Page.navigate", url=path.resolve().as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it gives."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = max(self._deadline - time.monotonic(), 0)
            assert select.select([self._read], [], [], left)[0], "the browser does not answer"
            part = os.read(self._read, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        text, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        if message.get("method") == "Network.requestWillBeSent":
            address = message["params"]["request"]["url"]
            if not address.startswith(("data:", "file:")):
                self.requests.append(address)
        return message


@contextmanager
def browser_page(chromium: str, profile: Path, seconds: float = 60) -> Iterator[Page]:
    """A tab of a browser that is started for it and ended after it.

    Args:
        chromium: The program.
        profile: An empty folder.
        seconds: After which a browser that does not answer fails the test.
    """
    there_read, write = os.pipe()
    read, there_write = os.pipe()
    command = [sys.executable, "-c", _LAUNCHER, str(there_read), str(there_write), chromium, *_OPTIONS]
    with (profile / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"],
            pass_fds=(there_read, there_write),
            stdout=log,
            stderr=log,
        )
    os.close(there_read)
    os.close(there_write)
    try:
        yield Page(read, write, seconds)
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)
