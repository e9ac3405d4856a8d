//! Calls of every kind through the gateway, made and answered by grpcio: HTTP/2 on both sides.

use blitz_tests::gateway::one_upstream;
use blitz_tests::python::{self, Server};
use blitz_tests::{Cell, Gateway, PATIENCE, Setup, closed_port, matrix, require_python, wait_until};

fn configuration(server: &std::net::SocketAddr) -> String {
    one_upstream(&[*server], "")
        .replace("[\"h1\"]", "[\"h2\"]")
        .replace("[upstreams.pool]", "[upstreams.pool]\nprotocol = \"h2\"")
}

fn client(gateway: &Gateway, words: &[&str]) {
    let port = gateway.address.port().to_string();
    python::run("grpc_client.py", &["grpc"], &[&[port.as_str()][..], words].concat());
}

/// Runs a case of the client.
fn calls(cell: Cell, case: &str) {
    require_python!("grpc");
    let server = Server::start("grpc_server.py", &["grpc"], &[]);
    let gateway = Setup::new(cell).config(&configuration(&server.address)).start();
    client(&gateway, &[case]);
    wait_until("nothing is under way", PATIENCE, || gateway.in_flight() == Some(0));
    assert!(gateway.admin("/metrics").text().contains("blitz_panics_total 0\n"));
    gateway.stop();
}

matrix! {
    fn unary(cell) {
        calls(cell, "unary");
    }

    fn metadata(cell) {
        calls(cell, "metadata");
    }

    fn errors_with_trailers(cell) {
        calls(cell, "failure");
    }

    fn server_streams(cell) {
        calls(cell, "server_stream");
    }

    fn client_streams(cell) {
        calls(cell, "client_stream");
    }

    fn streams_both_ways(cell) {
        calls(cell, "both_ways");
    }

    /// Messages of 16 MiB, 256 times as large as a window.
    fn large_messages(cell) {
        calls(cell, "large");
    }

    fn many_at_once(cell) {
        calls(cell, "many_at_once");
    }

    fn a_deadline(cell) {
        calls(cell, "deadline");
    }

    fn the_client_cancels(cell) {
        calls(cell, "client_leaves");
    }

    fn the_server_cancels(cell) {
        calls(cell, "server_leaves");
    }

    /// What grpcio makes of the gateway's own answers.
    fn refusals(cell) {
        require_python!("grpc");
        let gateway = Setup::new(cell).config(&configuration(&closed_port())).start();
        client(&gateway, &["refused_as", "UNAVAILABLE", "upstream_connect_refused"]);
        gateway.stop();
        let toml = configuration(&closed_port()).replace("\"/*rest\"", "\"/elsewhere\"");
        let gateway = Setup::new(cell).config(&toml).start();
        client(&gateway, &["refused_as", "UNIMPLEMENTED", "no_route"]);
        gateway.stop();
    }
}
