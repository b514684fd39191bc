"""A listener on 127.0.0.1 that does to each request exactly what a test's script says, down to single packets.

The rule of this file: bytes in, bytes out. It parses no more HTTP than it needs to know where a request ends, so it can
send what no HTTP library would.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

DEADLINE_S = 10.0  # for events that a healthy run sees within milliseconds


@dataclass(slots=True)
class Exchange:
    """One request as it arrived, and the connection it came on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connection: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)

    def header(self, name: str) -> list[str]:
        """Every value of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name]

    async def send(self, *pieces: bytes) -> None:
        """Write; returns when the kernel has it."""
        self.writer.write(b"".join(pieces))
        await self.writer.drain()

    async def respond(self, body: bytes, *headers: str, status: str = "200 OK") -> None:
        """Send a whole response of known length."""
        await self.send(head(f"Content-Length: {len(body)}", *headers, status=status), body)

    async def gone(self) -> None:
        """Wait until the caller closes its side."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while await self.reader.read(65536):
                    pass
        except ConnectionResetError:
            pass

    def reset(self) -> None:
        """Close with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """Close with FIN."""
        self.writer.close()


Script = Callable[[Exchange], Awaitable[None]]


def head(*headers: str, status: str = "200 OK") -> bytes:
    """A response head with these header lines."""
    return "\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode()


def chunk(data: bytes) -> bytes:
    """One chunk of Transfer-Encoding: chunked."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class WireServer:
    """Runs `script` for each request; afterwards the connection waits for the next one unless the script closed it."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """The root, without a slash at its end."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer, self.connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> None:
        try:
            while not writer.is_closing():
                exchange = await _read_request(reader, writer, connection)
                self.exchanges.append(exchange)
                await self.script(exchange)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the caller left
        finally:
            if not writer.is_closing():
                writer.transport.abort()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> Exchange:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    method, target, _ = lines[0].split(" ")
    pairs = [line.split(":", 1) for line in lines[1:]]
    headers = tuple((name, value.strip()) for name, value in pairs)
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    body = await reader.readexactly(length)
    return Exchange(reader, writer, connection, method, target, headers, body)
