//! The fields that the gateway treats itself.
//!
//! Owns: their identities, spelling, lookup by name, and sets of them. Does not own: the section (`fields.rs`).

/// Declares the enum, the spelling and the lookup from one table, so that none can disagree.
macro_rules! known_fields {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// A field that some part of the gateway treats; every other one is [`Known::Other`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Known {
            /// A field that the gateway passes on without looking at it.
            Other,
            $($(#[doc = $doc])* $variant,)*
        }

        impl Known {
            /// Every known field, [`Known::Other`] not among them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The canonical spelling; empty for [`Known::Other`].
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    Self::Other => "",
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

known_fields! {
    /// RFC 9110 section 7.2.
    Host = "Host",
    /// RFC 9110 section 7.6.1.
    Connection = "Connection",
    /// RFC 9110 section 8.6.
    ContentLength = "Content-Length",
    /// RFC 9112 section 6.1.
    TransferEncoding = "Transfer-Encoding",
    /// RFC 9110 section 10.1.4.
    Te = "TE",
    /// RFC 9110 section 6.6.2.
    Trailer = "Trailer",
    /// RFC 9110 section 7.8.
    Upgrade = "Upgrade",
    /// RFC 2068 section 19.7.1.
    KeepAlive = "Keep-Alive",
    /// RFC 9110 section 7.6.1; never standardised.
    ProxyConnection = "Proxy-Connection",
    /// RFC 9110 section 11.7.1.
    ProxyAuthenticate = "Proxy-Authenticate",
    /// RFC 9110 section 11.7.2.
    ProxyAuthorization = "Proxy-Authorization",
    /// RFC 9110 section 11.7.3.
    ProxyAuthenticationInfo = "Proxy-Authentication-Info",
    /// RFC 9113 section 3.1 (obsolete h2c upgrade); hop-by-hop.
    Http2Settings = "HTTP2-Settings",
    /// RFC 9110 section 10.1.1.
    Expect = "Expect",
    /// RFC 9110 section 7.6.3.
    Via = "Via",
    /// RFC 7239.
    Forwarded = "Forwarded",
    /// The de facto chain of client addresses.
    XForwardedFor = "X-Forwarded-For",
    /// The scheme the client used.
    XForwardedProto = "X-Forwarded-Proto",
    /// The authority the client used.
    XForwardedHost = "X-Forwarded-Host",
    /// The port the client used.
    XForwardedPort = "X-Forwarded-Port",
    /// A single client address, as some proxies write it.
    XRealIp = "X-Real-IP",
    /// RFC 9110 section 7.6.2.
    MaxForwards = "Max-Forwards",
    /// RFC 9209.
    ProxyStatus = "Proxy-Status",
    /// RFC 9110 section 6.6.1.
    Date = "Date",
    /// RFC 9110 section 10.2.4.
    Server = "Server",
    /// RFC 9110 section 8.3.
    ContentType = "Content-Type",
    /// RFC 9110 section 8.4.
    ContentEncoding = "Content-Encoding",
    /// RFC 9110 section 8.5.
    ContentLanguage = "Content-Language",
    /// RFC 9110 section 14.4.
    ContentRange = "Content-Range",
    /// RFC 9110 section 10.1.5.
    UserAgent = "User-Agent",
    /// RFC 9110 section 12.5.1.
    Accept = "Accept",
    /// RFC 9110 section 12.5.3.
    AcceptEncoding = "Accept-Encoding",
    /// RFC 9110 section 11.6.2.
    Authorization = "Authorization",
    /// RFC 9110 section 11.6.1.
    WwwAuthenticate = "WWW-Authenticate",
    /// RFC 6265 section 5.4.
    Cookie = "Cookie",
    /// RFC 6265 section 4.1.
    SetCookie = "Set-Cookie",
    /// RFC 9110 section 10.2.2.
    Location = "Location",
    /// RFC 9110 section 14.2.
    Range = "Range",
    /// RFC 9111 section 5.2.
    CacheControl = "Cache-Control",
    /// RFC 9111 section 5.1.
    Age = "Age",
    /// RFC 9111 section 5.3.
    Expires = "Expires",
    /// RFC 9110 section 12.5.5.
    Vary = "Vary",
    /// RFC 9110 section 8.8.3.
    ETag = "ETag",
    /// RFC 9110 section 8.8.2.
    LastModified = "Last-Modified",
    /// RFC 9110 section 13.1.2.
    IfNoneMatch = "If-None-Match",
    /// RFC 9110 section 13.1.3.
    IfModifiedSince = "If-Modified-Since",
    /// RFC 9110 section 10.2.3.
    RetryAfter = "Retry-After",
    /// RFC 8470 section 5.1.
    EarlyData = "Early-Data",
    /// RFC 6455 section 11.3.1.
    SecWebSocketKey = "Sec-WebSocket-Key",
    /// RFC 6455 section 11.3.3.
    SecWebSocketAccept = "Sec-WebSocket-Accept",
    /// RFC 6455 section 11.3.5.
    SecWebSocketVersion = "Sec-WebSocket-Version",
    /// How long a gRPC client waits.
    GrpcTimeout = "grpc-timeout",
}

// A set is one 64-bit word; `Other` takes a bit too.
const _: () = assert!(Known::ALL.len() < 64);

impl Known {
    /// The field with this name, compared without case.
    #[must_use]
    pub fn lookup(name: &[u8]) -> Self {
        // The length and one letter leave at most one candidate, or two; then one comparison of fixed length.
        let Some(first) = name.first().map(u8::to_ascii_lowercase) else {
            return Self::Other;
        };
        match (name.len(), first) {
            (2, b't') => pick(name, b"te", Self::Te),
            (3, b'a') => pick(name, b"age", Self::Age),
            (3, b'v') => pick(name, b"via", Self::Via),
            (4, b'd') => pick(name, b"date", Self::Date),
            (4, b'e') => pick(name, b"etag", Self::ETag),
            (4, b'h') => pick(name, b"host", Self::Host),
            (4, b'v') => pick(name, b"vary", Self::Vary),
            (5, b'r') => pick(name, b"range", Self::Range),
            (6, b'a') => pick(name, b"accept", Self::Accept),
            (6, b'c') => pick(name, b"cookie", Self::Cookie),
            (6, b'e') => pick(name, b"expect", Self::Expect),
            (6, b's') => pick(name, b"server", Self::Server),
            (7, b'e') => pick(name, b"expires", Self::Expires),
            (7, b't') => pick(name, b"trailer", Self::Trailer),
            (7, b'u') => pick(name, b"upgrade", Self::Upgrade),
            (8, b'l') => pick(name, b"location", Self::Location),
            (9, b'f') => pick(name, b"forwarded", Self::Forwarded),
            (9, b'x') => pick(name, b"x-real-ip", Self::XRealIp),
            (10, b'c') => pick(name, b"connection", Self::Connection),
            (10, b'e') => pick(name, b"early-data", Self::EarlyData),
            (10, b'k') => pick(name, b"keep-alive", Self::KeepAlive),
            (10, b's') => pick(name, b"set-cookie", Self::SetCookie),
            (10, b'u') => pick(name, b"user-agent", Self::UserAgent),
            (11, b'r') => pick(name, b"retry-after", Self::RetryAfter),
            (12, b'c') => pick(name, b"content-type", Self::ContentType),
            (12, b'g') => pick(name, b"grpc-timeout", Self::GrpcTimeout),
            (12, b'm') => pick(name, b"max-forwards", Self::MaxForwards),
            (12, b'p') => pick(name, b"proxy-status", Self::ProxyStatus),
            (13, b'a') => pick(name, b"authorization", Self::Authorization),
            (13, b'c') => match pick(name, b"cache-control", Self::CacheControl) {
                Self::Other => pick(name, b"content-range", Self::ContentRange),
                found => found,
            },
            (13, b'i') => pick(name, b"if-none-match", Self::IfNoneMatch),
            (13, b'l') => pick(name, b"last-modified", Self::LastModified),
            (14, b'c') => pick(name, b"content-length", Self::ContentLength),
            (14, b'h') => pick(name, b"http2-settings", Self::Http2Settings),
            (15, b'a') => pick(name, b"accept-encoding", Self::AcceptEncoding),
            (15, b'x') => pick(name, b"x-forwarded-for", Self::XForwardedFor),
            (16, b'c') => match pick(name, b"content-encoding", Self::ContentEncoding) {
                Self::Other => pick(name, b"content-language", Self::ContentLanguage),
                found => found,
            },
            (16, b'p') => pick(name, b"proxy-connection", Self::ProxyConnection),
            (16, b'w') => pick(name, b"www-authenticate", Self::WwwAuthenticate),
            (16, b'x') => match pick(name, b"x-forwarded-host", Self::XForwardedHost) {
                Self::Other => pick(name, b"x-forwarded-port", Self::XForwardedPort),
                found => found,
            },
            (17, b'i') => pick(name, b"if-modified-since", Self::IfModifiedSince),
            (17, b's') => pick(name, b"sec-websocket-key", Self::SecWebSocketKey),
            (17, b't') => pick(name, b"transfer-encoding", Self::TransferEncoding),
            (17, b'x') => pick(name, b"x-forwarded-proto", Self::XForwardedProto),
            (18, b'p') => pick(name, b"proxy-authenticate", Self::ProxyAuthenticate),
            (19, b'p') => pick(name, b"proxy-authorization", Self::ProxyAuthorization),
            (20, b's') => pick(name, b"sec-websocket-accept", Self::SecWebSocketAccept),
            (21, b's') => pick(name, b"sec-websocket-version", Self::SecWebSocketVersion),
            (25, b'p') => pick(name, b"proxy-authentication-info", Self::ProxyAuthenticationInfo),
            _ => Self::Other,
        }
    }
}

/// `known` when `name` is `lower` without regard to case. The fixed length lets the compiler compare whole words.
#[inline]
fn pick<const N: usize>(name: &[u8], lower: &[u8; N], known: Known) -> Known {
    let Ok(name) = <&[u8; N]>::try_from(name) else {
        return Known::Other;
    };
    let difference = name.iter().zip(lower).fold(0, |seen, (a, b)| seen | (a.to_ascii_lowercase() ^ b));
    if difference == 0 { known } else { Known::Other }
}

/// A set of known fields in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownSet(u64);

impl KnownSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// The set of the given fields.
    #[must_use]
    pub const fn of(fields: &[Known]) -> Self {
        let mut set = Self::EMPTY;
        let mut rest = fields;
        while let [field, tail @ ..] = rest {
            set = set.with(*field);
            rest = tail;
        }
        set
    }

    /// The set with one more field.
    #[must_use]
    pub const fn with(self, field: Known) -> Self {
        Self(self.0 | 1 << field as u8)
    }

    /// The set without the fields of the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The fields of either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Adds a field.
    pub const fn insert(&mut self, field: Known) {
        *self = self.with(field);
    }

    /// Whether the field is in the set.
    #[must_use]
    pub const fn contains(self, field: Known) -> bool {
        self.0 & (1 << field as u8) != 0
    }

    /// Whether the sets share a field.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}
