"""A primary that never worked, and callers who do not wait: it must be found out although it has no normal of its own.

Proves F-01 for what hangs from the first request on.
"""

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import complete_request, in_process, until

# A fifth of this patience is what an endpoint without a normal may take before it is to blame.
ATTEMPTS = {"reply_timeout_s": 1.0}


@pytest.mark.parametrize("leaves_by", ["deadline", "cancelling"])
async def test_f01_an_endpoint_that_hangs_from_the_start_is_ejected_although_its_callers_leave(
    providers: ProviderFleet, tmp_path: Path, leaves_by: str
) -> None:
    await providers.inject(Fault(kind=FaultKind.HANG, provider="aurora"))
    async with in_process(providers, tmp_path, policy={"attempts": ATTEMPTS}) as service:

        async def hurry() -> None:
            if leaves_by == "deadline":
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await service.stub.Complete(complete_request(), timeout=0.4)
                return
            call = asyncio.ensure_future(service.complete())
            with contextlib.suppress(TimeoutError, asyncio.CancelledError, grpc.aio.AioRpcError):
                await asyncio.wait_for(call, 0.4)

        async def moved() -> bool:
            await asyncio.gather(*(hurry() for _ in range(4)))
            return (await service.states())["aurora"] == "EJECTED"

        await until(moved)
        reply = await service.complete()
    assert reply.routing.provider == "borealis"
