//! One request on a connection that then stays open.
//!
//! Owns: asking once, in clear, over TLS, over HTTP/2 and TLS. Only the socket is kept: what the client knows of TLS
//! is dropped, since it has nothing more to say.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use blitz_bench::tls::client_config;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::Result;
use crate::servers::Server;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    /// HTTP/1.1 over TLS.
    Tls,
    /// HTTP/2 over TLS.
    Http2,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "tls",
            Self::Http2 => "h2",
        }
    }
}

/// Asks servers.
pub(crate) struct Asking {
    kind: Kind,
    config: Arc<ClientConfig>,
}

impl Asking {
    pub(crate) fn new(kind: Kind) -> Result<Self> {
        let mut config = client_config("X25519")?;
        config.resumption = rustls::client::Resumption::disabled();
        let protocol: &[u8] = if kind == Kind::Http2 { b"h2" } else { b"http/1.1" };
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Self { kind, config: Arc::new(config) })
    }

    /// Connects, asks, requires 200, and gives the connection.
    pub(crate) fn ask(&self, server: &Server) -> io::Result<TcpStream> {
        let mut tcp = TcpStream::connect(server.authority())?;
        tcp.set_read_timeout(Some(Duration::from_secs(5)))?;
        if self.kind == Kind::Plain {
            ask_http1(&mut tcp, server.path())?;
            return Ok(tcp);
        }
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let mut tls = ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)?;
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        if self.kind == Kind::Tls {
            ask_http1(&mut stream, server.path())?;
        } else {
            ask_http2(&mut stream, server.path())?;
        }
        Ok(tcp)
    }
}

fn ask_http1(stream: &mut (impl Read + Write), path: &str) -> io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    // The head and the short body may come apart.
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&bytes[..count]);
    }
    if answer.starts_with(b"HTTP/1.1 200") { Ok(()) } else { Err(io::Error::other("another answer")) }
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

fn ask_http2(stream: &mut (impl Read + Write), path: &str) -> io::Result<()> {
    // GET, https, `:path` and `:authority` as literals that are not remembered (RFC 7541 section 6.2.2).
    let mut block = vec![0x82, 0x87, 0x04, path.len() as u8];
    block.extend_from_slice(path.as_bytes());
    block.extend_from_slice(b"\x01\x05bench");
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    request.extend_from_slice(&[0, 0, block.len() as u8, HEADERS, END_STREAM | 0x4, 0, 0, 0, 1]);
    request.extend_from_slice(&block);
    stream.write_all(&request)?;
    let mut is_good = false;
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header)?;
        let [a, b, c, kind, flags, .., id] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload)?;
        if kind == SETTINGS && flags & ACK == 0 {
            stream.write_all(b"\0\0\0\x04\x01\0\0\0\0")?;
        }
        if kind == HEADERS && id == 1 {
            // `:status` 200 is one byte (RFC 7541 appendix A); a change of the table's size may stand before it.
            is_good = payload.iter().take(5).any(|byte| *byte == 0x88);
        }
        if id == 1 && kind <= HEADERS && flags & END_STREAM != 0 {
            return if is_good { Ok(()) } else { Err(io::Error::other("another answer")) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor, Read, Write};

    struct Canned(Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Canned {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.0.read(bytes)
        }
    }

    impl Write for Canned {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_answer_over_http2_is_understood() {
        let settings = b"\0\0\0\x04\0\0\0\0\0";
        let answer = |status: u8| {
            let mut bytes = settings.to_vec();
            bytes.extend_from_slice(&[
                0, 0, 1, 1, 4, 0, 0, 0, 1, status, 0, 0, 2, 0, 1, 0, 0, 0, 1, b'o', b'k',
            ]);
            Canned(Cursor::new(bytes), Vec::new())
        };
        let mut good = answer(0x88);
        super::ask_http2(&mut good, "/hello").expect("200");
        assert!(good.1.ends_with(b"\0\0\0\x04\x01\0\0\0\0"), "settings are acknowledged");
        super::ask_http2(&mut answer(0x8d), "/hello").expect_err("404");
    }
}
