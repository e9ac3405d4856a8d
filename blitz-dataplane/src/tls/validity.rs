//! When a certificate begins and ends to be valid (RFC 5280 section 4.1.2.5).
//!
//! Owns: the few steps through DER that lead there. Does not own: anything else about a certificate; verification is
//! rustls's.
#![forbid(unsafe_code)]

/// First and last second of validity, since 1970; `None` when the certificate is not one.
pub(super) fn validity(certificate: &[u8]) -> Option<(i64, i64)> {
    let (_, certificate, _) = element(certificate, SEQUENCE)?;
    let (_, mut tbs, _) = element(certificate, SEQUENCE)?;
    // version [0], when it is not the default.
    if let Some((_, _, rest)) = element(tbs, VERSION) {
        tbs = rest;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        // serialNumber, signature, issuer.
        (_, _, tbs) = element(tbs, tag)?;
    }
    let (_, validity, _) = element(tbs, SEQUENCE)?;
    let (begin, rest) = time(validity)?;
    let (end, _) = time(rest)?;
    Some((begin, end))
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// The element at the front if it has this tag: tag, content, what follows.
fn element(bytes: &[u8], tag: u8) -> Option<(u8, &[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    if first != tag {
        return None;
    }
    let (&len, rest) = rest.split_first()?;
    let (len, rest) = match len {
        0..=0x7f => (usize::from(len), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(len & 0x7f))?;
            (digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((first, content, rest))
}

/// A time at the front, and what follows.
fn time(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (tag, text, rest) = element(bytes, UTC_TIME).or_else(|| element(bytes, GENERALIZED_TIME))?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, text) = if tag == UTC_TIME {
        let (year, text) = text.split_at_checked(2)?;
        let year: i64 = year.parse().ok()?;
        (if year >= 50 { 1900 + year } else { 2000 + year }, text)
    } else {
        let (year, text) = text.split_at_checked(4)?;
        (year.parse().ok()?, text)
    };
    let mut numbers = [0_i64; 5];
    let mut text = text;
    for number in &mut numbers {
        let (digits, left) = text.split_at_checked(2)?;
        *number = digits.parse().ok()?;
        text = left;
    }
    let [month, day, hour, minute, second] = numbers;
    Some((days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second, rest))
}

/// Days since 1970 of a date of the Gregorian calendar, whose years are taken to begin in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let month = (month + 9) % 12;
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_count_from_1970() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(2000, 3, 1), 11_017);
        assert_eq!(days(2026, 11, 20), 20_777);
        assert_eq!(days(1969, 12, 31), -1);
    }

    #[test]
    fn a_certificate_says_when_it_is_valid() {
        let mut parameters = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).expect("name");
        parameters.not_before = rcgen::date_time_ymd(2001, 2, 3);
        parameters.not_after = rcgen::date_time_ymd(2055, 4, 5);
        let key = rcgen::KeyPair::generate().expect("key");
        let certificate = parameters.self_signed(&key).expect("certificate");
        let der = certificate.der();
        assert_eq!(validity(der), Some((days(2001, 2, 3) * 86_400, days(2055, 4, 5) * 86_400)));
        for cut in 0..100 {
            assert_eq!(validity(&der[..cut]), None);
        }
    }
}
