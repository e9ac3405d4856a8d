//! Real clients over HTTP/3: libcurl (through curl_cffi), aioquic, tquic_client. Each does what its users do; a script
//! says what was seen, the test what should be.

use std::process::Command;

use blitz_tests::tls::Algorithm;
use blitz_tests::{Cell, Gateway, Pki, Setup, Upstream, matrix, require};

const LIBCURL: &str = r#"
import sys, concurrent.futures
from curl_cffi import CurlHttpVersion, Session
port, ca = sys.argv[1], sys.argv[2]
url = f"https://localhost:{port}"
session = Session(verify=ca, timeout=60)
only = dict(http_version=CurlHttpVersion.V3ONLY)
got = session.get(url + "/a?b", **only)
assert (got.status_code, got.http_version, got.text) == (200, 30, "/a?b"), (got.status_code, got.http_version, got.text)
assert "alt-svc" not in got.headers
body = b"z" * 3_000_000
got = session.post(url + "/echo/x", data=body, **only)
assert (got.status_code, len(got.content)) == (200, len(body)), got
def one(n):
    got = Session(verify=ca, timeout=60).get(f"{url}/{n}", **only)
    return got.text
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(one, range(40))) == [f"/{n}" for n in range(40)]
# By TCP first: the answer says where HTTP/3 is.
got = session.get(url + "/", http_version=CurlHttpVersion.V2TLS)
assert got.http_version == 3 and got.headers["alt-svc"] == f'h3=":{port}"; ma=86400', got.headers
print("fine")
"#;

const AIOQUIC: &str = r#"
import asyncio, sys
from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
port, ca = int(sys.argv[1]), sys.argv[2]

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

    async def ask(self, method, path, body=b""):
        stream = self._quic.get_next_available_stream_id()
        done = asyncio.get_running_loop().create_future()
        self.streams[stream] = ([], bytearray(), done)
        fields = [(":method", method), (":scheme", "https"), (":authority", f"localhost:{port}"), (":path", path)]
        fields = [(name.encode(), value.encode()) for name, value in fields]
        self.http.send_headers(stream, fields, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        await done
        heads, body, _ = self.streams[stream]
        return int(heads[-1][b":status"]), bytes(body)

async def main():
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, cafile=ca, server_name="localhost")
    async with connect("127.0.0.1", port, configuration=configuration, create_protocol=Client) as client:
        assert await client.ask("GET", "/x") == (200, b"/x")
        body = b"q" * 300_000
        assert await client.ask("POST", "/echo/x", body) == (200, body)
        many = await asyncio.gather(*(client.ask("GET", f"/{n}") for n in range(100)))
        assert many == [(200, f"/{n}".encode()) for n in range(100)]
        client.change_connection_id()
        assert await client.ask("GET", "/y") == (200, b"/y")
        client.request_key_update()
        assert await client.ask("GET", "/z") == (200, b"/z")
asyncio.run(asyncio.wait_for(main(), 60))
print("fine")
"#;

/// The same client behind an address translation that gives it another port again and again.
const REBINDING: (&str, &str) = (
    r#"
import asyncio, select, socket, sys, threading
switch = threading.Event()
def udp():
    it = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    it.bind(("127.0.0.1", 0))
    return it
front = udp()
def relay(target):
    back, client = udp(), None
    while True:
        if switch.is_set():
            back = udp()
            switch.clear()
        for it in select.select([front, back], [], [], 0.005)[0]:
            data, sender = it.recvfrom(65536)
            if it is front:
                client = sender
                back.sendto(data, target)
            else:
                front.sendto(data, client)
threading.Thread(target=relay, args=(("127.0.0.1", int(sys.argv[1])),), daemon=True).start()
"#,
    r#"
    async with connect("127.0.0.1", front.getsockname()[1], configuration=configuration, create_protocol=Client) as client:
        for n in range(5):
            assert await client.ask("GET", f"/{n}") == (200, f"/{n}".encode())
            switch.set()
            while switch.is_set():
                await asyncio.sleep(0.001)
asyncio.run(asyncio.wait_for(main(), 60))
print("fine")
"#,
);

fn start(cell: Cell, workers: usize) -> (Pki, Upstream, Gateway) {
    let (pki, upstream) = (Pki::new(), Upstream::echoing_targets());
    pki.certificate("edge", &["localhost"], Algorithm::Ecdsa);
    std::fs::write(pki.path("ca.crt"), &pki.authority.certificate).expect("a file");
    let listener = pki.listener(&["edge"], "").replace("[\"h1\"]", "[\"h1\", \"h2\", \"h3\"]");
    let toml = blitz_tests::gateway::one_upstream(&[upstream.address], "");
    let toml = toml.replace(blitz_tests::gateway::LISTENER, &listener);
    // What is echoed comes from the gateway itself.
    let toml = toml.replace("path = \"/*rest\"", "path = \"/{one}\"")
        + "\n[[routes]]\npath = \"/\"\nupstream = \"pool\"\n";
    let gateway = Setup::new(cell).workers(workers).config(&toml).start();
    (pki, upstream, gateway)
}

fn run(module: &str, script: &str, pki: &Pki, gateway: &Gateway) {
    let Some(mut python) = require::python(module) else {
        require::skip(&format!("{module} is not installed: cargo xtask setup"));
        return;
    };
    python.args(["-c", script, &gateway.address.port().to_string()]).arg(pki.path("ca.crt"));
    let output = python.output().expect("Python runs");
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim() == "fine", "{said}{error}");
}

matrix! {
    fn libcurl(cell) {
        let (pki, _upstream, gateway) = start(cell, 2);
        run("curl_cffi", LIBCURL, &pki, &gateway);
        gateway.stop();
    }

    fn a_client_whose_port_changes_keeps_its_worker(cell) {
        let (pki, _upstream, gateway) = start(cell, 3);
        let (client, _) = AIOQUIC.split_once("    async with connect").expect("it connects");
        let script = format!("{}{client}{}", REBINDING.0, REBINDING.1);
        run("aioquic", &script, &pki, &gateway);
        let metrics = gateway.admin("/metrics").text();
        for fate in ["other_worker", "unknown"] {
            let none = format!("blitz_quic_datagrams_received_total{{fate=\"{fate}\"}} 0\n");
            assert!(metrics.contains(&none), "{metrics}");
        }
        gateway.stop();
    }

    fn aioquic(cell) {
        let (pki, _upstream, gateway) = start(cell, 2);
        run("aioquic", AIOQUIC, &pki, &gateway);
        gateway.stop();
    }
    /// Many requests over one connection, then many connections after each other: every request that ends ends well.
    fn tquic(cell) {
        let (_pki, _upstream, gateway) = start(cell, 2);
        let Some(program) = require::tool("tquic_client") else {
            require::skip("tquic_client is not installed: cargo xtask setup");
            return;
        };
        let bodies = tempfile::tempdir().expect("a scratch folder can be made");
        let folder = bodies.path().to_string_lossy();
        for args in [
            &["--total-requests-per-thread", "400", "--max-requests-per-conn", "400", "--dump-dir", &folder][..],
            &["--duration", "1", "--total-requests-per-thread", "0", "--max-requests-per-conn", "25"],
        ] {
            let mut client = Command::new(&program);
            client.args(["--alpn", "h3", "--log-level", "OFF", "--max-concurrent-requests", "20"]).args(args);
            client.arg("--connect-to").arg(gateway.address.to_string());
            client.arg(format!("https://localhost:{}/body", gateway.address.port()));
            let output = client.output().expect("tquic_client can be executed");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            // "requests: sent 400, finish 400, success 400", "conns: total 1, finish 1, success 1, failure 0"
            let number = |line: &str, word: &str| -> u64 {
                let line = said.lines().find(|it| it.starts_with(line)).unwrap_or_else(|| panic!("no {line} in {said}"));
                let after = line.split_once(&format!("{word} ")).map(|(_, rest)| rest).unwrap_or_default();
                after.split(',').next().and_then(|word| word.trim().parse().ok()).unwrap_or_else(|| panic!("{said}"))
            };
            let (finished, good) = (number("requests:", "finish"), number("requests:", "success"));
            assert!(finished >= 400 && good == finished, "{said}");
            assert_eq!(number("conns:", "failure"), 0, "{said}");
            assert!(args[0] != "--duration" || number("conns:", "success") > 10, "{said}");
        }
        let body = std::fs::read(bodies.path().join("body")).expect("a body was kept");
        assert_eq!(body, b"/body");
        gateway.stop();
    }
}
