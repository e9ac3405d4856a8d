"""aioquic as a client that comes back: port, authority, what to do.

resume: eight connections, all but the first resumed. early: besides, requests go before the handshake is done.
stay N: one connection that asks again and again for N seconds, and is given other connection IDs meanwhile.
"""

import asyncio
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration

PORT, AUTHORITY, WHAT = int(sys.argv[1]), sys.argv[2], sys.argv[3]


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http, self.streams = H3Connection(self._quic), {}

    def quic_event_received(self, event):
        for it in self.http.handle_event(event):
            if isinstance(it, (HeadersReceived, DataReceived)):
                heads, body, done = self.streams[it.stream_id]
                if isinstance(it, HeadersReceived):
                    heads.append(dict(it.headers))
                else:
                    body.extend(it.data)
                if it.stream_ended and not done.done():
                    done.set_result(None)

    async def get(self, path):
        stream = self._quic.get_next_available_stream_id()
        done = asyncio.get_running_loop().create_future()
        self.streams[stream] = ([], bytearray(), done)
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", f"edge.test:{PORT}"), (":path", path)]
        self.http.send_headers(stream, [(name.encode(), value.encode()) for name, value in fields], end_stream=True)
        self.transmit()
        await done
        heads, _, _ = self.streams[stream]
        return int(heads[-1][b":status"])


async def visit(ticket, is_early):
    tickets = []
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, cafile=AUTHORITY, server_name="edge.test", session_ticket=ticket
    )
    it = connect(
        "127.0.0.1",
        PORT,
        configuration=configuration,
        create_protocol=Client,
        session_ticket_handler=tickets.append,
        wait_connected=not is_early,
    )
    async with it as client:
        assert await client.get("/hello") == 200
        while not client._quic._handshake_complete:
            await asyncio.sleep(0.001)
        tls = client._quic.tls
        assert tls.session_resumed == (ticket is not None), "resumed"
        assert tls.early_data_accepted == is_early, "early data"
        while not tickets:
            await asyncio.sleep(0.01)
    return tickets[-1]


async def stay(seconds):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, cafile=AUTHORITY, server_name="edge.test")
    async with connect("127.0.0.1", PORT, configuration=configuration, create_protocol=Client) as client:
        seen, end = set(), asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            assert await asyncio.wait_for(client.get("/hello"), 10) == 200
            seen.add(client._quic._peer_cid.cid)
            await asyncio.sleep(0.02)
        assert len(seen) > 1, seen


async def main():
    if WHAT.startswith("stay "):
        return await stay(int(WHAT.removeprefix("stay ")))
    ticket = await visit(None, False)
    for _ in range(7):
        ticket = await visit(ticket, WHAT == "early")


asyncio.run(asyncio.wait_for(main(), 600))
