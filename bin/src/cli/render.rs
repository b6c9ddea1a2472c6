//! Records as bytes on stdout. Written by hand into one buffer, because this is where `graven read` spends its time.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Appends `{"offset":..,"timestamp":..,"size":..,"text":..}` and a newline; `base64` stands for `text` when the payload is not
/// UTF-8, and `meta` follows when there is one.
pub(crate) fn json_record(out: &mut Vec<u8>, offset: u64, timestamp: u64, meta: &[u8], payload: &[u8]) {
    out.extend_from_slice(b"{\"offset\":");
    number(out, offset);
    out.extend_from_slice(b",\"timestamp\":");
    number(out, timestamp);
    out.extend_from_slice(b",\"size\":");
    number(out, payload.len() as u64);
    match std::str::from_utf8(payload) {
        Ok(text) => {
            out.extend_from_slice(b",\"text\":");
            json_string(out, text);
        }
        Err(_) => {
            out.extend_from_slice(b",\"base64\":");
            base64_string(out, payload);
        }
    }
    if !meta.is_empty() {
        out.extend_from_slice(b",\"meta\":");
        match std::str::from_utf8(meta) {
            Ok(text) => json_string(out, text),
            Err(_) => {
                out.extend_from_slice(b"{\"base64\":");
                base64_string(out, meta);
                out.push(b'}');
            }
        }
    }
    out.extend_from_slice(b"}\n");
}

/// Appends `text` as a JSON string.
pub(crate) fn json_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    let mut copied = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let short = ESCAPE[byte as usize];
        if short == 0 {
            continue;
        }
        out.extend_from_slice(&bytes[copied..at]);
        copied = at + 1;
        if short == b'u' {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        } else {
            out.extend_from_slice(&[b'\\', short]);
        }
    }
    out.extend_from_slice(&bytes[copied..]);
    out.push(b'"');
}

/// For each byte: 0 = stands for itself, `u` = written as \u00XX, else the letter after the backslash.
const ESCAPE: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

fn base64_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    // The room is exact, so this cannot fail; were it to, the string would be empty rather than wrong.
    let written = STANDARD.encode_slice(bytes, &mut out[start..]).unwrap_or(0);
    out.truncate(start + written);
    out.push(b'"');
}

/// Appends the payload in hexadecimal, without a newline.
pub(crate) fn hex(out: &mut Vec<u8>, payload: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.reserve(payload.len() * 2);
    for byte in payload {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

/// Appends `value` in decimal.
pub(crate) fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn rendered(meta: &[u8], payload: &[u8]) -> Value {
        let mut out = Vec::new();
        json_record(&mut out, 7, 1_700_000_000_123, meta, payload);
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1, "one line a record");
        serde_json::from_slice(&out).expect("valid JSON")
    }

    #[test]
    fn every_character_survives_as_text() {
        let text: String = (0..0x3000).chain(0x1f600..0x1f610).filter_map(char::from_u32).collect();
        let value = rendered(b"", text.as_bytes());
        assert_eq!(value["text"], text.as_str());
        assert_eq!(value["size"], text.len());
        assert_eq!((value["offset"].as_u64(), value["timestamp"].as_u64()), (Some(7), Some(1_700_000_000_123)));
        assert!(value.get("meta").is_none());
    }

    #[test]
    fn bytes_that_are_not_utf8_are_base64() {
        for length in 1..20 {
            let payload: Vec<u8> = (0..length).map(|i| 0xff - i).collect();
            let value = rendered(b"", &payload);
            let text = value["base64"].as_str().expect("base64");
            assert_eq!(STANDARD.decode(text).expect("decodes"), payload);
            assert!(value.get("text").is_none());
        }
    }

    #[test]
    fn meta_is_shown_when_there_is_one() {
        assert_eq!(rendered(b"trace=1", b"x")["meta"], "trace=1");
        assert_eq!(rendered(&[0xff], b"x")["meta"]["base64"], "/w==");
    }

    #[test]
    fn numbers_and_hex() {
        for value in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = Vec::new();
            number(&mut out, value);
            assert_eq!(String::from_utf8(out).expect("ascii"), value.to_string());
        }
        let mut out = Vec::new();
        hex(&mut out, &[0, 0xab, 0xff]);
        assert_eq!(out, b"00abff");
    }
}
