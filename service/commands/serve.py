"""`routecast serve`."""

import gc
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import uvloop
from cyclopts import Parameter

from service.commands.common import ERR, ConfigFile
from service.config import Config
from service.config_file import load
from service.main import Ports
from service.main import serve as serve_until_stopped

_YOUNG_OBJECTS = 50_000


def serve(
    *,
    config: ConfigFile,
    ports_file: Annotated[Path | None, Parameter(help="Write the bound ports there as JSON, once serving.")] = None,
) -> None:
    """Serve gRPC and the OpenAI-compatible HTTP edge until SIGTERM."""
    settings = load(config)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )

    def announce(ports: Ports) -> None:
        _spare_the_collector()
        ERR.print(_addresses(settings, ports), soft_wrap=True)
        if ports_file is not None:
            temporary = ports_file.with_suffix(".tmp")
            temporary.write_text(json.dumps(asdict(ports)))
            temporary.replace(ports_file)

    uvloop.run(serve_until_stopped(settings, announce))


def _addresses(settings: Config, ports: Ports) -> str:
    grpc_host, http_host = (address.rpartition(":")[0] for address in (settings.server.grpc, settings.server.http))
    words = f"serving gRPC on {grpc_host}:{ports.grpc} and HTTP on http://{http_host}:{ports.http}/v1"
    if settings.server.metrics is None:
        return words
    return f"{words}, metrics on http://{settings.server.metrics.rpartition(':')[0]}:{ports.metrics}/metrics"


def _spare_the_collector() -> None:
    """Look for cyclic garbage less often than by default, and never among what the start has made: requests make next
    to none, and looking through all that they hold until it is written costs each of them several per cent.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
