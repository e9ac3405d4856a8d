"""A WebSocket server that echoes every message: `ws_echo.py [CERTIFICATE KEY]`.

Prints its port. `close CODE` closes with that code.
"""

import asyncio
import ssl
import sys

import websockets


async def echo(socket):
    count = 0
    async for message in socket:
        if isinstance(message, str) and message.startswith("close "):
            await socket.close(int(message.split()[1]), "as asked")
            return
        count += 1
        if count % 5 == 0 and len(message) > 2:
            # In three fragments.
            third = len(message) // 3
            await socket.send([message[:third], message[third : 2 * third], message[2 * third :]])
        else:
            await socket.send(message)


async def main():
    options = {"max_size": None, "subprotocols": ["echo"], "ping_interval": None}
    if len(sys.argv) > 1:
        options["ssl"] = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        options["ssl"].set_alpn_protocols(["h2", "http/1.1"])
        options["ssl"].load_cert_chain(sys.argv[1], sys.argv[2])
    async with websockets.serve(echo, "127.0.0.1", 0, **options) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
