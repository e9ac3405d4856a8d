"""Calls to grpc_server.py: grpc_client.py PORT CASE. Ends with 0 when all went as they have to."""

import sys
import threading
import time

import grpc

OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]
PATIENCE = 20



def expect(found, wanted):
    if found != wanted:
        raise AssertionError(f"{found!r} where {wanted!r} is wanted")


def expect_error(code, call):
    try:
        call()
    except grpc.RpcError as error:
        expect(error.code(), code)
        return error
    raise AssertionError(f"no error where {code} is wanted")


class Cases:
    def __init__(self, channel):
        self.channel = channel

    def unary_unary(self, name):
        return self.channel.unary_unary(f"/test.Peer/{name}")

    def unary_stream(self, name):
        return self.channel.unary_stream(f"/test.Peer/{name}")

    def unary(self):
        for message in [b"", b"x", b"y" * 70_000]:
            expect(self.unary_unary("Unary")(message, timeout=PATIENCE), message)

    def metadata(self):
        call = self.unary_unary("Unary")
        asked = (("x-ask", "a, b"), ("x-ask-bin", bytes(range(256))))
        answer, done = call.with_call(b"m", metadata=asked, timeout=PATIENCE)
        expect(answer, b"m")
        expect(dict(done.initial_metadata())["x-first"], "a, b")
        trailing = dict(done.trailing_metadata())
        expect((trailing["x-last"], trailing["x-raw-bin"]), ("9", bytes(range(256))))
        expect(done.code(), grpc.StatusCode.OK)

    def failure(self):
        text = "50 % of \u00e9\nand more"
        call = lambda: self.unary_unary("Fail")(text.encode(), timeout=PATIENCE)
        error = expect_error(grpc.StatusCode.FAILED_PRECONDITION, call)
        expect(error.details(), text)
        expect(dict(error.trailing_metadata())["x-why"], "because")
        missing = lambda: self.unary_unary("Nothing")(b"", timeout=PATIENCE)
        expect_error(grpc.StatusCode.UNIMPLEMENTED, missing)

    def server_stream(self):
        answers = list(self.unary_stream("Server")(b"1000", timeout=PATIENCE))
        expect(answers, [b"%d" % number for number in range(1000)])
        expect(list(self.unary_stream("Server")(b"0", timeout=PATIENCE)), [])

    def client_stream(self):
        call = self.channel.stream_unary("/test.Peer/Client")
        expect(call((b"x" * size for size in range(1000)), timeout=PATIENCE), b"499500")
        expect(call(iter(()), timeout=PATIENCE), b"0")

    def both_ways(self):
        """Each message waits for the answer to the one before: nothing may be held back."""
        answered = threading.Semaphore(1)

        def messages():
            for number in range(500):
                if not answered.acquire(timeout=PATIENCE):
                    return
                yield b"%d" % number

        count = 0
        for answer in self.channel.stream_stream("/test.Peer/Both")(messages(), timeout=PATIENCE):
            expect(answer, b"%d" % count)
            count += 1
            answered.release()
        expect(count, 500)

    def large(self):
        message = bytes(range(256)) * (16 << 12)
        expect(len(message), 16 << 20)
        expect(self.unary_unary("Unary")(message, timeout=60) == message, True)
        call = self.channel.stream_stream("/test.Peer/Both")
        pieces = [message[: 1 << 20]] * 16
        expect(list(call(iter(pieces), timeout=60)) == pieces, True)

    def cancelled(self):
        return int(self.unary_unary("Count")(b"", timeout=PATIENCE))

    def until_cancelled(self, what, before):
        begun = time.monotonic()
        while self.cancelled() == before:
            if time.monotonic() - begun > PATIENCE / 2:
                raise AssertionError(f"the server was not told of {what}")
            time.sleep(0.005)

    def deadline(self):
        for message in [b"", b"begin"]:
            before = self.cancelled()
            slow = lambda: self.unary_unary("Slow")(message, timeout=0.3)
            expect_error(grpc.StatusCode.DEADLINE_EXCEEDED, slow)
            self.until_cancelled(f"the deadline of {message}", before)

    def client_leaves(self):
        before = self.cancelled()
        future = self.unary_unary("Slow").future(b"begin", timeout=PATIENCE)
        stream = self.unary_stream("SlowStream")(b"", timeout=PATIENCE)
        expect(next(stream), b"first")
        stream.cancel()
        self.until_cancelled("the stream", before)
        before = self.cancelled()
        future.cancel()
        self.until_cancelled("the call", before)

    def server_leaves(self):
        stream = self.unary_stream("Leave")(b"", timeout=PATIENCE)
        expect(next(stream), b"first")
        expect_error(grpc.StatusCode.CANCELLED, lambda: next(stream))

    def many_at_once(self):
        call = self.unary_unary("Unary")
        calls = [call.future(b"%d" % number, timeout=PATIENCE) for number in range(500)]
        expect([call.result() for call in calls], [b"%d" % number for number in range(500)])

    def refused_as(self, code, detail):
        """What the gateway itself says."""
        error = expect_error(
            getattr(grpc.StatusCode, code), lambda: self.unary_unary("Unary")(b"", timeout=PATIENCE)
        )
        expect(error.details(), detail)


def main():
    _, port, case, *words = sys.argv
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        getattr(Cases(channel), case)(*words)


main()
