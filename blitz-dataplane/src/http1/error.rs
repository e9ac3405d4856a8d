//! What can be wrong with HTTP/1 bytes.
//!
//! Owns: the errors, their labels, and what each means when a client or an endpoint sent it. Does not own: the answers.

use std::fmt;

use crate::exchange::{ErrorKind, ProxyError};

/// Declares the errors, their labels and their meaning for either side in one table.
macro_rules! h1_errors {
    ($($(#[doc = $doc:literal])* $error:ident: $label:literal, $request:ident, $response:ident;)*) => {
        /// What is wrong with the bytes. Small and `Copy`; the label is static.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum H1Error {
            $($(#[doc = $doc])* $error,)*
        }

        impl H1Error {
            /// Every error.
            pub const ALL: &[Self] = &[$(Self::$error,)*];

            /// The name in metrics, logs and the corpus.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$error => $label,)*
                }
            }

            /// The kind of error when a client sent the bytes.
            #[must_use]
            pub const fn request_kind(self) -> ErrorKind {
                match self {
                    $(Self::$error => ErrorKind::$request,)*
                }
            }

            /// The kind of error when an endpoint sent the bytes.
            #[must_use]
            pub const fn response_kind(self) -> ErrorKind {
                match self {
                    $(Self::$error => ErrorKind::$response,)*
                }
            }
        }
    };
}

h1_errors! {
    // error: label, kind in a request, kind in a response
    /// A line ends with LF alone (RFC 9112 section 2.2 lets a recipient accept it; peers disagree, so it is refused).
    BareLf: "bare_lf", BadRequestHead, UpstreamBadHead;
    /// A CR that no LF follows (RFC 9112 section 2.2).
    BareCr: "bare_cr", BadRequestHead, UpstreamBadHead;
    /// A NUL byte in a head (RFC 9110 section 5.5).
    Nul: "nul", BadRequestHead, UpstreamBadHead;
    /// A line that starts with a space or tab: a folded value or whitespace before the first field (RFC 9112 sections
    /// 2.2, 5.2).
    ObsFold: "obs_fold", BadRequestHead, UpstreamBadHead;
    /// More than two empty lines before a request, or one before a response (RFC 9112 section 2.2).
    EmptyLines: "empty_lines", BadRequestHead, UpstreamBadHead;
    /// The head exceeds the limit.
    HeadTooLarge: "head_too_large", RequestHeadTooLarge, UpstreamHeadTooLarge;
    /// The target exceeds the limit, or the request line the head's.
    TargetTooLong: "target_too_long", TargetTooLong, UpstreamHeadTooLarge;
    /// More fields than the limit.
    TooManyFields: "too_many_fields", TooManyRequestFields, UpstreamHeadTooLarge;
    /// The request line is not method, target and version with one space between (RFC 9112 section 3).
    BadRequestLine: "bad_request_line", BadRequestHead, UpstreamBadHead;
    /// The method is longer than any registered one (RFC 9112 section 3.1).
    MethodTooLong: "method_too_long", NotImplemented, UpstreamBadHead;
    /// The request target has none of the four forms, or a form the method does not allow (RFC 9112 section 3.2).
    BadTarget: "bad_target", BadRequestHead, UpstreamBadHead;
    /// The target's scheme is not the connection's (RFC 9110 section 7.4).
    SchemeMismatch: "scheme_mismatch", Misdirected, UpstreamBadHead;
    /// The version is not `HTTP/` digit `.` digit (RFC 9112 section 2.3).
    BadVersion: "bad_version", BadRequestHead, UpstreamBadHead;
    /// A version of HTTP other than 1.0 and 1.1.
    VersionUnsupported: "version_unsupported", VersionNotSupported, UpstreamBadHead;
    /// The status line is not version, space and three digits from 100 to 599 (RFC 9112 section 4).
    BadStatusLine: "bad_status_line", BadRequestHead, UpstreamBadHead;
    /// A field name is empty, holds a byte that is no token byte, or has no colon (RFC 9112 section 5.1).
    BadFieldName: "bad_field_name", BadRequestHead, UpstreamBadHead;
    /// Whitespace between a field name and its colon (RFC 9112 section 5.1).
    SpaceBeforeColon: "space_before_colon", BadRequestHead, UpstreamBadHead;
    /// A field value holds a control byte (RFC 9110 section 5.5).
    BadFieldValue: "bad_field_value", BadRequestHead, UpstreamBadHead;
    /// The head is not one complete head; the scanner never passes such bytes on.
    BadHead: "bad_head", BadRequestHead, UpstreamBadHead;
    /// An HTTP/1.1 request without Host (RFC 9112 section 3.2).
    MissingHost: "missing_host", BadRequestHead, UpstreamBadHead;
    /// More than one Host (RFC 9112 section 3.2).
    DuplicateHost: "duplicate_host", BadRequestHead, UpstreamBadHead;
    /// A Host or authority that is not `host [":" port]` (RFC 9112 section 3.2).
    BadHost: "bad_host", BadRequestHead, UpstreamBadHead;
    /// Content-Length beside Transfer-Encoding (RFC 9112 section 6.1).
    LengthAndCoding: "length_and_coding", BadRequestFraming, UpstreamFraming;
    /// More than one Content-Length, equal or not (RFC 9112 section 6.3).
    DuplicateLength: "duplicate_length", BadRequestFraming, UpstreamFraming;
    /// A Content-Length that is not digits alone, or exceeds 64 bits (RFC 9110 section 8.6).
    BadLength: "bad_length", BadRequestFraming, UpstreamFraming;
    /// A length or coding in a message that can have no body (RFC 9110 section 8.6, RFC 9112 section 6.1).
    ForbiddenBody: "forbidden_body", BadRequestFraming, UpstreamFraming;
    /// Transfer-Encoding in HTTP/1.0 (RFC 9112 section 6.1).
    CodingInHttp10: "coding_in_http10", BadRequestFraming, UpstreamFraming;
    /// Transfer-Encoding that is malformed, repeated, or does not end with chunked (RFC 9112 section 6.3).
    BadCoding: "bad_coding", BadRequestFraming, UpstreamFraming;
    /// A transfer coding other than chunked before the final chunked (RFC 9112 section 6.1).
    UnsupportedCoding: "unsupported_coding", NotImplemented, UpstreamTransferCoding;
    /// Expect with anything but 100-continue (RFC 9110 section 10.1.1).
    BadExpectation: "bad_expectation", ExpectationFailed, UpstreamBadHead;
    /// A chunk size without a digit, with another byte, or with more than 16 digits (RFC 9112 section 7.1).
    BadChunkSize: "bad_chunk_size", BadRequestFraming, UpstreamFraming;
    /// A malformed chunk extension (RFC 9112 section 7.1.1).
    BadChunkExtension: "bad_chunk_extension", BadRequestFraming, UpstreamFraming;
    /// Chunk extensions beyond the bounds for one line or one body.
    ChunkExtensionTooLong: "chunk_extension_too_long", BadRequestFraming, UpstreamFraming;
    /// A chunk line or its data does not end with CRLF (RFC 9112 section 7.1).
    BadChunkEnd: "bad_chunk_end", BadRequestFraming, UpstreamFraming;
    /// A malformed trailer field (RFC 9112 section 7.1.2).
    BadTrailer: "bad_trailer", BadRequestFraming, UpstreamFraming;
    /// A trailer field that would change framing or routing (RFC 9110 section 6.5.1).
    ForbiddenTrailer: "forbidden_trailer", BadRequestFraming, UpstreamFraming;
    /// Trailers beyond their bounds in bytes or fields.
    TrailersTooLarge: "trailers_too_large", RequestHeadTooLarge, UpstreamTrailersTooLarge;
    /// The connection ended within a body (RFC 9112 section 8).
    UnexpectedEof: "unexpected_eof", DownstreamClosed, UpstreamClosedMidAnswer;
}

impl H1Error {
    /// The exchange's error when a client sent the bytes; the label becomes its detail.
    #[must_use]
    pub const fn in_request(self) -> ProxyError {
        ProxyError::new(self.request_kind()).with_detail(self.label())
    }

    /// The exchange's error when an endpoint sent the bytes; the label becomes its detail.
    #[must_use]
    pub const fn in_response(self) -> ProxyError {
        ProxyError::new(self.response_kind()).with_detail(self.label())
    }

    /// Status of the answer to a client that sent the bytes; 0 when it is gone.
    #[must_use]
    pub const fn request_status(self) -> u16 {
        self.request_kind().row().status
    }
}

impl fmt::Display for H1Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl std::error::Error for H1Error {}
