//! A wrong command line or file ends at once, with a sentence that names what is wrong.

use std::net::TcpListener;

use blitz_tests::gateway::{LISTENER, one_upstream, run};
use blitz_tests::{closed_port, free_port};

/// Runs, requires failure, and requires each word in what was printed.
#[track_caller]
fn fails_naming(args: &[&str], words: &[&str]) {
    let (status, text) = run(args);
    assert!(!status.success(), "blitz {} succeeded: {text}", args.join(" "));
    assert!(status.code().is_some(), "blitz {} ended with {status}: {text}", args.join(" "));
    assert!(!text.contains("panicked"), "{text}");
    for word in words {
        assert!(text.contains(word), "blitz {}: {word:?} is not in {text}", args.join(" "));
    }
}

/// Runs `--check` on a file of this text.
#[track_caller]
fn file_fails_naming(ending: &str, text: &str, words: &[&str]) {
    let scratch = tempfile::tempdir().expect("a scratch folder can be made");
    let path = scratch.path().join(format!("edge.{ending}"));
    std::fs::write(&path, text.replace("@PORT@", "8080")).expect("the file can be written");
    let mut words = words.to_vec();
    words.push(if ending == "toml" { "edge.toml" } else { "edge.json" });
    fails_naming(&["-c", &path.to_string_lossy(), "--check"], &words);
}

#[test]
fn wrong_flags() {
    fails_naming(&["--nonsense"], &["--nonsense"]);
    fails_naming(&["-b", "127.0.0.1:9001", "-p", "70000"], &["70000"]);
    fails_naming(&["-b", "127.0.0.1:9001", "-p", "8080", "-w", "none"], &["none"]);
    fails_naming(&["-b", "127.0.0.1:9001", "-p", "8080", "--mode", "both"], &["both", "mp", "sp"]);
    fails_naming(&["-b", "127.0.0.1:9001", "-p", "8080", "--io", "iocp"], &["iocp", "uring", "epoll"]);
    fails_naming(&["-b", "no port here", "-p", "8080"], &["no port here"]);
    fails_naming(&["-b", "127.0.0.1", "-p", "8080"], &["127.0.0.1"]);
    fails_naming(&["-c", "/nonexistent/edge.toml"], &["/nonexistent/edge.toml"]);
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind(("127.0.0.1", free_port())).expect("a free port can be bound");
    let port = taken.local_addr().expect("a bound socket has an address").port().to_string();
    for mode in ["mp", "sp"] {
        let (upstream, admin) = (closed_port().to_string(), closed_port().to_string());
        fails_naming(&["-b", &upstream, "-p", &port, "-w", "1", "--mode", mode, "--admin", &admin], &[&port]);
    }
}

#[test]
fn an_admin_port_in_use() {
    let taken = TcpListener::bind(("127.0.0.1", free_port())).expect("a free port can be bound");
    let admin = taken.local_addr().expect("a bound socket has an address").to_string();
    let (upstream, port) = (closed_port().to_string(), free_port().to_string());
    fails_naming(&["-b", &upstream, "-p", &port, "-w", "1", "--admin", &admin], &[&admin]);
}

#[test]
fn unknown_keys_and_wrong_values() {
    let endpoint = [closed_port()];
    let with = |more: &str| one_upstream(&endpoint, more);
    file_fails_naming("toml", &with("[timeouts]\nrequest_heed_ms = 1\n"), &["timeouts", "request_heed_ms"]);
    file_fails_naming("toml", &with("[timeouts]\nrequest_head_ms = 0\n"), &["request_head_ms", "0"]);
    file_fails_naming(
        "toml",
        &with("[http]\nrequest_fields_max = 1000000\n"),
        &["request_fields_max", "1000000"],
    );
    file_fails_naming("toml", &with("[nonsense]\nx = 1\n"), &["nonsense"]);
    file_fails_naming("toml", &with("[[routes]]\npath = \"/x\"\nupstream = \"nobody\"\n"), &["nobody"]);
    file_fails_naming("toml", &format!("{LISTENER}\n[upstreams.pool]\nendpoints = []\n"), &["endpoints"]);
    file_fails_naming("toml", "this is [not TOML", &[]);
    file_fails_naming(
        "json",
        "{\"backends\": [{\"host\": \"127.0.0.1\", \"port\": 70000}]}",
        &["port", "70000"],
    );
    file_fails_naming("json", "{\"backends\": [", &[]);
}

#[test]
fn a_good_file_passes_the_check_and_starts_nothing() {
    let scratch = tempfile::tempdir().expect("a scratch folder can be made");
    let path = scratch.path().join("edge.toml");
    // The port is taken: a check binds nothing.
    let taken = TcpListener::bind(("127.0.0.1", free_port())).expect("a free port can be bound");
    let port = taken.local_addr().expect("a bound socket has an address").port().to_string();
    std::fs::write(&path, one_upstream(&[closed_port()], "").replace("@PORT@", &port))
        .expect("can be written");
    let (status, text) = run(&["-c", &path.to_string_lossy(), "--check"]);
    assert!(status.success(), "{text}");
}

#[test]
fn version_help_and_schema_are_printed() {
    let (status, text) = run(&["--version"]);
    assert!(status.success() && text.starts_with("blitz "), "{text}");
    let (status, text) = run(&["--help"]);
    assert!(status.success(), "{text}");
    for flag in ["--mode", "--io", "--admin", "--check", "-b", "-p", "-w", "-c"] {
        assert!(text.contains(flag), "{flag} is not in the help");
    }
    let (status, text) = run(&["--print-schema"]);
    assert!(status.success(), "{text}");
    let schema: serde_json::Value = serde_json::from_str(&text).expect("the schema is JSON");
    for key in ["listeners", "upstreams", "routes", "timeouts"] {
        assert!(schema["properties"][key].is_object(), "{key} is not in the schema");
    }
}
