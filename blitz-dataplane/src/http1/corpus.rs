//! Replays every case of `corpus/http1/` in every split.
//!
//! The format of a case is described in `corpus/http1/README.md`.

use std::path::{Path, PathBuf};

use super::replay::{Head, Kind, Transcript, replay};
use super::{BodyFraming, HeadLimits, Version};
use crate::exchange::Method;

/// Fewest cases that must be found, so that a moved folder does not pass by being empty.
const CASES_MIN: usize = 150;

#[test]
fn every_case_in_every_split() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/http1");
    let mut cases = 0;
    let mut failures = Vec::new();
    for (folder, kind) in
        [("requests", Kind::Request), ("responses", Kind::Response(Method::Get)), ("chunked", Kind::Chunked)]
    {
        for path in case_files(&root.join(folder)) {
            cases += 1;
            let text = std::fs::read_to_string(&path).expect("a case is readable");
            if let Err(failure) = run_case(&text, kind) {
                failures
                    .push(format!("{folder}/{}: {failure}", path.file_name().unwrap_or_default().display()));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {cases} cases fail:\n{}", failures.len(), failures.join("\n"));
    assert!(cases >= CASES_MIN, "only {cases} cases found under {}", root.display());
}

fn case_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the corpus folder is there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "case"));
    files.sort();
    files
}

fn run_case(text: &str, kind: Kind) -> Result<(), String> {
    let (header, payload) = text.split_once("\n---\n").ok_or("no line of ---")?;
    if !header.starts_with("# ") {
        return Err("the first line says nothing about the case".into());
    }
    let line = |key: &str| header.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let expect = line("expect:").ok_or("no expect: line")?;
    let (limits, kind) = settings(line("with:").unwrap_or_default(), kind)?;
    let bytes = unescape(payload)?;

    let whole = replay(kind, &limits, &bytes, &mut || usize::MAX);
    compare(expect, kind, &whole)?;
    let by_byte = replay(kind, &limits, &bytes, &mut || 1);
    if by_byte != whole {
        return Err(format!("single bytes give {by_byte:?}, one piece {whole:?}"));
    }
    for cut in 1..bytes.len() {
        let mut pieces = [cut, usize::MAX].into_iter();
        let split = replay(kind, &limits, &bytes, &mut || pieces.next().unwrap_or(usize::MAX));
        if split != whole {
            return Err(format!("cut at {cut} gives {split:?}, one piece {whole:?}"));
        }
    }
    Ok(())
}

fn settings(with: &str, mut kind: Kind) -> Result<(HeadLimits, Kind), String> {
    let mut limits = HeadLimits::RECOMMENDED;
    for setting in with.split_whitespace() {
        let (key, value) = setting.split_once('=').ok_or("a setting without =")?;
        let number = || value.parse::<usize>().map_err(|error| format!("{setting}: {error}"));
        match key {
            "head" => limits.head_bytes_max = number()?,
            "fields" => limits.fields_max = number()?,
            "target" => limits.target_bytes_max = number()?,
            "method" => kind = Kind::Response(Method::from_bytes(value.as_bytes()).ok_or("a bad method")?),
            _ => return Err(format!("unknown setting {key}")),
        }
    }
    Ok((limits, kind))
}

fn compare(expect: &str, kind: Kind, transcript: &Transcript) -> Result<(), String> {
    let mut words = expect.split_whitespace();
    match (words.next(), transcript.error) {
        (Some("refuse"), Some(error)) => {
            let found = match kind {
                Kind::Response(_) => error.label().to_owned(),
                Kind::Request | Kind::Chunked => {
                    format!("{} {}", error.request_status(), error.label())
                }
            };
            let expected = words.collect::<Vec<_>>().join(" ");
            if found == expected { Ok(()) } else { Err(format!("refused with {found}, expected {expected}")) }
        }
        (Some("accept"), None) => {
            let found = describe(transcript);
            for expected in words {
                if !found.iter().any(|pair| pair == expected) {
                    return Err(format!("expected {expected}, found {}", found.join(" ")));
                }
            }
            Ok(())
        }
        (Some("refuse"), None) => Err(format!("accepted: {}", describe(transcript).join(" "))),
        (Some("accept"), Some(error)) => Err(format!("refused with {error}")),
        _ => Err("expect: is neither accept nor refuse".into()),
    }
}

/// The transcript as `key=value` words.
fn describe(transcript: &Transcript) -> Vec<String> {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string().replace(' ', "\\x20");
    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    let version = |version: Version| version.via_token();
    let framing = |body: BodyFraming| match body {
        BodyFraming::Empty => "empty".to_owned(),
        BodyFraming::Exact(length) => format!("exact:{length}"),
        BodyFraming::Chunked => "chunked".to_owned(),
        BodyFraming::UntilClose => "until_close".to_owned(),
    };
    let mut pairs = vec![
        format!("content={}", text(&transcript.content)),
        format!("trailers={}", text(&transcript.trailers)),
        format!("complete={}", yes_no(transcript.complete)),
        format!("left={}", transcript.left),
    ];
    match &transcript.head {
        Some(Head::Request(head, about)) => pairs.extend([
            format!("version={}", version(about.version)),
            format!("method={}", head.method),
            format!("authority={}", text(&head.authority)),
            format!("path={}", text(&head.path)),
            format!("fields={}", text(&super::replay::wire(&head.fields))),
            format!("body={}", framing(about.body)),
            format!("keep_alive={}", yes_no(about.keep_alive)),
            format!("expect_continue={}", yes_no(about.expects_continue)),
            format!("upgrade={}", yes_no(about.has_upgrade)),
        ]),
        Some(Head::Response(head, about)) => pairs.extend([
            format!("version={}", version(about.version)),
            format!("status={}", head.status),
            format!("fields={}", text(&super::replay::wire(&head.fields))),
            format!("body={}", framing(about.body)),
            format!("keep_alive={}", yes_no(about.keep_alive)),
            format!("upgrade={}", yes_no(about.has_upgrade)),
        ]),
        None => {}
    }
    pairs
}

/// The bytes that the text of a case stands for.
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match (byte, rest) {
            (b'\n' | b'\r', _) => {}
            (b'\\', [b'x', high, low, after @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).map_err(|error| error.to_string())?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|error| error.to_string())?);
                rest = after;
            }
            (b'\\', [b'{', after @ ..]) => {
                let end = after.iter().position(|byte| *byte == b'}').ok_or("a repetition without }")?;
                let inside = std::str::from_utf8(&after[..end]).map_err(|error| error.to_string())?;
                let (count, repeated) = inside.split_once('*').ok_or("a repetition without *")?;
                let count = count.parse().map_err(|error| format!("{inside}: {error}"))?;
                bytes.extend_from_slice(unescape(repeated)?.repeat(count).as_slice());
                rest = &after[end + 1..];
            }
            (b'\\', [escaped, after @ ..]) => {
                bytes.push(match escaped {
                    b'r' => b'\r',
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'0' => b'\0',
                    b'\\' => b'\\',
                    other => return Err(format!("unknown escape \\{}", other.escape_ascii())),
                });
                rest = after;
            }
            (other, _) => bytes.push(*other),
        }
    }
    Ok(bytes)
}
