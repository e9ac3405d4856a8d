"""A WebSocket over HTTP/2 (RFC 8441) with an echo server behind: `ws_h2_client.py HOST PORT COUNT [CA]`.

Prints the status, and how it ended.
"""

import secrets
import socket
import ssl
import sys
import threading

import h2.config
import h2.connection
import h2.events
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader
from ws_messages import messages


class Tls:
    """TLS over bytes in memory: unlike a socket's, it is used under a lock by whoever sends and whoever receives."""

    def __init__(self, ca, connection):
        context = ssl.create_default_context(cafile=ca)
        context.set_alpn_protocols(["h2"])
        self.received, self.sealed = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.received, self.sealed, server_hostname="edge.test")
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(self.sealed.read())
                data = connection.recv(1 << 16)
                if not data:
                    raise EOFError("the connection ended in its handshake")
                self.received.write(data)
        assert self.tls.selected_alpn_protocol() == "h2"

    def seal(self, data):
        if data:
            self.tls.write(data)
        return self.sealed.read()

    def open(self, data):
        self.received.write(data)
        opened = b""
        try:
            while part := self.tls.read(1 << 16):
                opened += part
        except ssl.SSLWantReadError:
            pass
        return opened


class Peer:
    def __init__(self, host, port, ca):
        self.socket = socket.create_connection((host, port), timeout=60)
        self.tls = Tls(ca, self.socket) if ca else None
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.changed = threading.Condition()
        self.reader = StreamReader()
        self.status = None
        self.failure = None
        with self.changed:
            self.h2.initiate_connection()
            self.h2.increment_flow_control_window(1 << 20)
            self.flush()

    def flush(self):
        data = self.h2.data_to_send()
        self.socket.sendall(self.tls.seal(data) if self.tls else data)

    def receive(self):
        """Reads until the connection ends; wakes whoever waits."""
        try:
            while True:
                data = self.socket.recv(1 << 16)
                with self.changed:
                    opened = self.tls.open(data) if self.tls else data
                    for event in self.h2.receive_data(opened) if opened else ():
                        self.handle(event)
                    self.flush()
                    if not data:
                        raise EOFError("the connection ended")
                    self.changed.notify_all()
        except Exception as failure:
            with self.changed:
                self.failure = failure
                self.changed.notify_all()

    def handle(self, event):
        if isinstance(event, h2.events.ResponseReceived):
            self.status = dict(event.headers)[":status"]
        elif isinstance(event, h2.events.DataReceived):
            self.reader.feed_data(event.data)
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.reader.feed_eof()
        elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
            raise EOFError(repr(event))

    def wait(self, condition):
        """With the lock held: until `condition()`."""
        while not condition():
            if self.failure:
                raise self.failure
            assert self.changed.wait(60), "nothing came"

    def send(self, stream, data, end=False):
        while data or end:
            with self.changed:
                self.wait(lambda: not data or self.h2.local_flow_control_window(stream) > 0)
                room = self.h2.local_flow_control_window(stream)
                part, data = data[: min(room, 16_384)], data[min(room, 16_384) :]
                is_last = end and not data
                self.h2.send_data(stream, part, end_stream=is_last)
                self.flush()
            if is_last:
                return

    def frame(self):
        parser = Frame.parse(self.reader.read_exact, mask=False)
        with self.changed:
            while True:
                try:
                    next(parser)
                except StopIteration as done:
                    return done.value
                had = len(self.reader.buffer)
                self.wait(lambda: len(self.reader.buffer) > had or self.reader.eof)


def outgoing(count):
    """The frames of all messages, masked, some messages in two fragments."""
    for index, message in enumerate(messages(count)):
        opcode = Opcode.TEXT if isinstance(message, str) else Opcode.BINARY
        data = message.encode() if isinstance(message, str) else message
        if index % 3 == 0 and len(data) > 1:
            half = len(data) // 2
            yield Frame(opcode, data[:half], fin=False).serialize(mask=True)
            yield Frame(Opcode.CONT, data[half:]).serialize(mask=True)
        else:
            yield Frame(opcode, data).serialize(mask=True)
        if index % 500 == 0:
            yield Frame(Opcode.PING, secrets.token_bytes(4)).serialize(mask=True)


def main(host, port, count, ca):
    peer = Peer(host, port, ca)
    threading.Thread(target=peer.receive, daemon=True).start()
    with peer.changed:
        peer.wait(lambda: peer.h2.remote_settings.enable_connect_protocol == 1)
        stream = peer.h2.get_next_available_stream_id()
        head = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "https" if ca else "http",
            ":path": "/chat",
            ":authority": "edge.test",
            "sec-websocket-version": "13",
            "sec-websocket-protocol": "echo",
        }
        peer.h2.send_headers(stream, list(head.items()))
        peer.h2.increment_flow_control_window(1 << 18, stream)
        peer.flush()
        peer.wait(lambda: peer.status is not None)
    status = peer.status

    def send():
        for frame in outgoing(count):
            peer.send(stream, frame)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    pongs = 0
    for index, expected in enumerate(messages(count)):
        got = b""
        while True:
            frame = peer.frame()
            if frame.opcode == Opcode.PONG:
                pongs += 1
                continue
            got += frame.data
            if frame.fin:
                break
        expected = expected.encode() if isinstance(expected, str) else expected
        assert got == expected, f"message {index}: {len(got)} of {len(expected)}"
    sender.join()
    peer.send(stream, Frame(Opcode.TEXT, b"close 4001").serialize(mask=True))
    frame = peer.frame()
    while frame.opcode == Opcode.PONG:
        pongs, frame = pongs + 1, peer.frame()
    close = Close.parse(frame.data)
    peer.send(stream, Frame(Opcode.CLOSE, frame.data).serialize(mask=True), end=True)
    with peer.changed:
        peer.wait(lambda: peer.reader.eof)
    assert pongs == (count + 499) // 500, pongs
    print(status, count, close.code, close.reason)


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
