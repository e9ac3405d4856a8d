"""A gRPC server on grpcio, with messages of plain bytes: it prints its port on 127.0.0.1 and serves until its input ends."""

import sys
import threading
from concurrent import futures

import grpc

OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]
PATIENCE = 20


class Service:
    """What the server does. Calls that ended before their time are counted."""

    def __init__(self):
        self.cancelled = 0
        self.lock = threading.Lock()

    def note_cancel(self):
        with self.lock:
            self.cancelled += 1

    def unary(self, message, context):
        metadata = {key: value for key, value in context.invocation_metadata()}
        context.send_initial_metadata((("x-first", metadata.get("x-ask", "none")),))
        context.set_trailing_metadata((("x-last", "9"), ("x-raw-bin", metadata.get("x-ask-bin", b""))))
        return message

    def fail(self, message, context):
        context.set_trailing_metadata((("x-why", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, message.decode())

    def server_stream(self, message, context):
        for number in range(int(message)):
            yield b"%d" % number

    def client_stream(self, messages, context):
        return b"%d" % sum(len(message) for message in messages)

    def both(self, messages, context):
        for message in messages:
            yield message

    def gone_of(self, context):
        """What is set at the end of a call, which is counted: in the callback, since the library does not come back to a
        stream whose end it knows of."""
        gone = threading.Event()

        def note():
            self.note_cancel()
            gone.set()

        if not context.add_callback(note):
            note()
        return gone

    def slow(self, message, context):
        gone = self.gone_of(context)
        if message == b"begin":
            context.send_initial_metadata(())
        gone.wait(PATIENCE)
        return b"late"

    def slow_stream(self, message, context):
        gone = self.gone_of(context)
        yield b"first"
        gone.wait(PATIENCE)

    def leave(self, message, context):
        yield b"first"
        context.cancel()

    def count(self, message, context):
        with self.lock:
            return b"%d" % self.cancelled


def main():
    service = Service()
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(service.unary),
        "Fail": grpc.unary_unary_rpc_method_handler(service.fail),
        "Server": grpc.unary_stream_rpc_method_handler(service.server_stream),
        "Client": grpc.stream_unary_rpc_method_handler(service.client_stream),
        "Both": grpc.stream_stream_rpc_method_handler(service.both),
        "Slow": grpc.unary_unary_rpc_method_handler(service.slow),
        "SlowStream": grpc.unary_stream_rpc_method_handler(service.slow_stream),
        "Leave": grpc.unary_stream_rpc_method_handler(service.leave),
        "Count": grpc.unary_unary_rpc_method_handler(service.count),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Peer", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    # Ends with whoever has started it.
    sys.stdin.read()
    server.stop(None)


main()
