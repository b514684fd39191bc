"""The service under load, in a process of its own before simulated providers, and what it holds."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sim.provider_server import ProviderFleet

MODEL, EMBEDDING_MODEL = "openai/gpt-4", "openai/embedding"
NAMES = ("aurora", "borealis", "cirrus")
_READY_S = 60.0
_KIB = 1024


def config_for(fleet: ProviderFleet, folder: Path) -> Path:
    """Write the configuration of a service before this fleet; return its path."""
    path = folder / "routecast.yaml"
    config = {
        "server": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0"},
        "data_dir": str(folder / "data"),
        "providers": [{"name": name, "base_url": fleet.url(name)} for name in NAMES],
        "models": [
            {"id": MODEL, "endpoints": [{"provider": name, "provider_model": "m"} for name in NAMES]},
            {
                "id": EMBEDDING_MODEL,
                "capabilities": ["embeddings"],
                "endpoints": [{"provider": name, "provider_model": "e"} for name in NAMES],
            },
        ],
        "scoring": {"enabled": False},
        "upstream": {"prewarm": 0},
        "policy": {"attempts": {"ttft_timeout_s": 5, "stall_timeout_s": 10, "reserve_s": 10}},
    }
    path.write_text(json.dumps(config))
    return path


@asynccontextmanager
async def served(config: Path) -> AsyncIterator[tuple[int, dict[str, int]]]:
    """`routecast serve`, until the block ends; yields its pid and ports."""
    ports_file = config.with_name("ports.json")
    command = (sys.executable, "-m", "service.cli", "serve", "--config", str(config), "--ports-file", str(ports_file))
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(_READY_S):
            while not await asyncio.to_thread(ports_file.exists):
                if process.returncode is not None:
                    raise RuntimeError("the service did not come up")
                await asyncio.sleep(0.05)
        yield process.pid, json.loads(ports_file.read_text())
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // _KIB
