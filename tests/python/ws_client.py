"""Talks with an echo server: `ws_client.py URL COUNT [CA]`. Prints what was agreed on and how it ended."""

import asyncio
import ssl
import sys

import websockets
from ws_messages import messages


def fragments(message):
    half = len(message) // 2
    return [message[:half], message[half:]]


async def main(url, count, ca):
    options = {"max_size": None, "subprotocols": ["echo"], "ping_interval": None}
    if ca:
        options["ssl"] = ssl.create_default_context(cafile=ca)
        options["server_hostname"] = "edge.test"
    async with websockets.connect(url, **options) as socket:

        async def send():
            for index, message in enumerate(messages(count)):
                await socket.send(fragments(message) if index % 3 == 0 and len(message) > 1 else message)
                if index % 500 == 0:
                    await asyncio.wait_for(await socket.ping(), 60)

        sending = asyncio.create_task(send())
        for index, expected in enumerate(messages(count)):
            got = await asyncio.wait_for(socket.recv(), 60)
            assert got == expected, f"message {index}: {len(got)} of {len(expected)}"
        await sending
        extensions = ",".join(extension.name for extension in socket.extensions)
        await socket.send("close 4001")
        await asyncio.wait_for(socket.wait_closed(), 60)
        print(count, socket.subprotocol, extensions, socket.close_code, socket.close_reason)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None))
