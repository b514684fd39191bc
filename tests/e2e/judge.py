"""An independent judge: PyPI's llmock plays providers that fail by script, and grades whoever called them.

`python -m tests.e2e.judge` is one such provider in a process of its own: it prints its address as one line and serves
until its stdin ends, so that it cannot outlive the test.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True, slots=True)
class Judge:
    """A running judge. `url` is its root; the providers it plays are below it."""

    url: str
    http: aiohttp.ClientSession

    async def script(self, *behaviours: dict[str, Any]) -> None:
        """Queue what goes wrong with the next requests."""
        await self._call("POST", "scenario", {"behaviors": list(behaviours)})

    async def reset(self) -> None:
        """Forget requests and what was queued."""
        await self._call("POST", "reset", {})

    async def verdict(self) -> dict[str, Any]:
        """What it has to say about the callers so far: `findings`, of them `errors` and `warnings`."""
        return await self._call("GET", "verdict", None)

    async def requests(self) -> list[dict[str, Any]]:
        """Every request it has served, oldest first."""
        listed: list[dict[str, Any]] = (await self._call("GET", "requests", None))["requests"]
        return listed

    async def _call(self, method: str, what: str, body: Any) -> dict[str, Any]:
        async with self.http.request(method, f"{self.url}/_llmock/{what}", json=body) as response:
            said: dict[str, Any] = await response.json()
            if response.status >= 400:
                raise RuntimeError(f"{what}: {said}")
            return said


@contextmanager
def judging(**settings: str) -> Iterator[str]:
    """Run a judge and yield its root; `settings` are its environment variables without their prefix, such as `rpm`."""
    environment = os.environ | {f"LLMOCK_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "tests.e2e.judge"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        if not url.startswith("http"):
            raise RuntimeError(f"the judge ended with {process.wait()}, expected its address")
        yield url
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Serve until stdin ends."""
    from llmock.testing import LLMockServer  # noqa: PLC0415  # a web framework that only this process needs

    with LLMockServer() as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
