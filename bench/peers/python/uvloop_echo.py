"""The protocol of uvloop's own echo server, its fastest form there."""

import asyncio
import resource
import sys

import uvloop

BACKLOG = 1024


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        # uvloop has set TCP_NODELAY.
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", int(sys.argv[1]), backlog=BACKLOG)
    await server.serve_forever()


hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
uvloop.run(main())
