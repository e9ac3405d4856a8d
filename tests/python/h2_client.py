"""Exchanges by the h2 library (prior knowledge): h2_client.py PORT CASE. Ends with 0 when all went as they have to.

The endpoint behind the gateway is the one of tests/tests/h2_python.rs, which goes by the path.
"""

import socket
import sys

import h2.config
import h2.connection
import h2.events
import h2.exceptions

PATIENCE = 15


class Client:
    """One connection; what comes is kept by stream."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.flush()
        self.streams = {}

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def begin(self, method, path, fields=(), ends=True):
        stream = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)]
        self.h2.send_headers(stream, pseudo + list(fields), end_stream=ends)
        self.streams[stream] = Stream()
        self.flush()
        return stream

    def send(self, stream, body, ends=False):
        while body:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.flush()
                self.turn()
                continue
            piece, body = body[:room], body[room:]
            self.h2.send_data(stream, piece)
        if ends:
            self.h2.end_stream(stream)
        self.flush()

    def turn(self):
        """Takes what has come."""
        received = self.socket.recv(1 << 16)
        if not received:
            raise AssertionError("the connection ended")
        for event in self.h2.receive_data(received):
            stream = self.streams.get(getattr(event, "stream_id", None))
            if stream:
                self.note(stream, event)
            elif isinstance(event, h2.events.ConnectionTerminated):
                raise AssertionError(f"GOAWAY with {event.error_code}")
        self.flush()

    def note(self, stream, event):
        if isinstance(event, h2.events.InformationalResponseReceived):
            stream.interims.append(dict(event.headers))
        elif isinstance(event, h2.events.ResponseReceived):
            stream.fields = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            stream.body += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            stream.trailers = dict(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            stream.is_whole = True
        elif isinstance(event, h2.events.StreamReset):
            stream.reset = event.error_code

    def until(self, stream, condition):
        while not condition(self.streams[stream]):
            self.turn()
        return self.streams[stream]

    def answer(self, stream):
        return self.until(stream, lambda seen: seen.is_whole or seen.reset is not None)


class Stream:
    def __init__(self):
        self.interims = []
        self.fields = None
        self.body = b""
        self.trailers = None
        self.is_whole = False
        self.reset = None


def expect(found, wanted):
    if found != wanted:
        raise AssertionError(f"{found!r} where {wanted!r} is wanted")


def get_and_head(client):
    seen = client.answer(client.begin("GET", "/mirror"))
    expect((seen.fields[":status"], seen.body), ("200", b"GET "))
    seen = client.answer(client.begin("HEAD", "/head"))
    expect((seen.fields[":status"], seen.fields["content-length"], seen.body), ("200", "1234", b""))


def posts(client):
    body = bytes(range(256)) * 4096
    for fields in [[("content-length", str(len(body)))], []]:
        stream = client.begin("POST", "/mirror", fields, ends=False)
        client.send(stream, body, ends=True)
        seen = client.answer(stream)
        expect((seen.fields[":status"], seen.body == b"POST " + body), ("200", True))


def trailers(client):
    stream = client.begin("POST", "/trailers", [("te", "trailers")], ends=False)
    client.send(stream, b"body")
    client.h2.send_headers(stream, [("x-forth", "1")], end_stream=True)
    client.flush()
    seen = client.answer(stream)
    expect((seen.body, seen.trailers), (b"x-forth: 1\r\n", {"x-back": "2"}))


def waits_for_100(client):
    fields = [("expect", "100-continue"), ("content-length", "4")]
    stream = client.begin("POST", "/continue", fields, ends=False)
    seen = client.until(stream, lambda seen: seen.interims)
    expect([fields[":status"] for fields in seen.interims], ["100"])
    client.send(stream, b"body", ends=True)
    expect(client.answer(stream).body, b"body")


def early_hints(client):
    seen = client.answer(client.begin("GET", "/hints"))
    expect([(fields[":status"], fields["link"]) for fields in seen.interims], [("103", "</a.css>")])
    expect((seen.fields[":status"], seen.body), ("200", b"ok"))


def early_answer(client):
    stream = client.begin("POST", "/early", ends=False)
    client.send(stream, b"the beginning")
    seen = client.answer(stream)
    expect((seen.fields[":status"], seen.body, seen.is_whole), ("403", b"no", True))
    # The connection goes on.
    get_and_head(client)


def cancels(client):
    for method, path in [("POST", "/never"), ("GET", "/never"), ("GET", "/begins")]:
        stream = client.begin(method, path, ends=method == "GET")
        if method == "POST":
            client.send(stream, b"x")
        if path == "/begins":
            client.until(stream, lambda seen: seen.body)
        client.h2.reset_stream(stream, 8)
        client.flush()
        # Nothing of it disturbs the others.
        get_and_head(client)


client = Client(int(sys.argv[1]))
globals()[sys.argv[2]](client)
