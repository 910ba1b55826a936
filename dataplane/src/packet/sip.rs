//! The Call-ID of a SIP message (RFC 3261 §20.8), as `ip_vs_pe_sip` reads it: the first header of this name, or of its short form `i`, that begins a line.

use std::ops::Range;

/// The longest Call-ID that is remembered (`IP_VS_PEDATA_MAXLEN`).
pub const LONGEST: usize = 255;

const NAME: &[u8] = b"Call-ID";
const SHORT: &[u8] = b"i";

/// Where a message has its Call-ID. `None` if it has none, or one that is too long or does not fill its line.
pub fn call_id(message: &[u8]) -> Option<Range<usize>> {
    // The first line is no header.
    let breaks = (0..message.len()).filter(|at| matches!(message[*at], b'\r' | b'\n'));
    let value = breaks.map(|at| &message[at + 1..]).find_map(value)?;
    let value = skip_blanks(value);
    let length = length(value)?;
    let is_whole = matches!(value.get(length), Some(b'\r' | b'\n'));
    // The value reaches to the message's end.
    let at = message.len() - value.len();
    (is_whole && length <= LONGEST).then_some(at..at + length)
}

/// What follows the header's name and colon where a line begins so.
fn value(line: &[u8]) -> Option<&[u8]> {
    let begins = |name: &[u8]| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    let rest = if begins(NAME) {
        &line[NAME.len()..]
    } else if begins(SHORT) && line.get(1).is_some_and(|next| !next.is_ascii_alphabetic()) {
        &line[SHORT.len()..]
    } else {
        return None;
    };
    skip_blanks(rest).strip_prefix(b":")
}

fn skip_blanks(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    &text[blanks..]
}

/// The length of a word, or of two with an @ between them. `None` if there is none, or none behind the @.
fn length(text: &[u8]) -> Option<usize> {
    let word = |text: &[u8]| text.iter().take_while(|byte| is_of_word(**byte)).count();
    let first = word(text);
    if first == 0 {
        return None;
    }
    match text.get(first) {
        Some(b'@') => {
            let second = word(&text[first + 1..]);
            (second > 0).then_some(first + 1 + second)
        }
        _ => Some(first),
    }
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-.!%*_+`'~()<>:\\\"/[]?{}".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel made of each, seen from the outside: which messages went together, and which were dropped.
    #[test]
    fn as_the_kernel_reads_them() {
        let long = |n: usize| format!("INVITE x\r\nCall-ID: {}@h\r\n", "x".repeat(n));
        for (message, id) in [
            ("INVITE sip:a@b SIP/2.0\r\nVia: x\r\nCall-ID: a1@h\r\nCSeq: 1\r\n\r\n", Some("a1@h")),
            ("INVITE x\r\nVia: x\r\ni: a1@h\r\n", Some("a1@h")),
            ("INVITE x\r\nVia: x\r\nCALL-ID: a1@h\r\n", Some("a1@h")),
            ("INVITE x\nVia: x\nCall-ID: a1@h\n", Some("a1@h")),
            ("INVITE x\r\nVia: y\r\n\r\n", None),
            ("Call-ID: a1@h\r\nVia: y\r\n\r\n", None),
            ("INVITE x\r\nCall-ID: a1@h", None),
            ("INVITE x\r\nCall-ID: a1@h \r\n", None),
            ("INVITE x\r\nCall-ID: c3\r\n", Some("c3")),
            ("INVITE x\r\nCall-ID: d4@\r\n", None),
            ("INVITE x\r\nCall-ID  :   a1@h\r\n\r\n", Some("a1@h")),
            ("INVITE x\r\nCall-ID: \r\nCall-ID: a1@h\r\n\r\n", None),
            ("INVITE x\r\nis: q\r\ni: a1@h\r\n\r\n", Some("a1@h")),
            ("INVITE x\r\nVia: y\r\n Call-ID: z9@q\r\nCall-ID: a1@h\r\n\r\n", Some("a1@h")),
            ("", None),
            ("INVITE x\r\nCall-ID: a1@h;x\r\n\r\n", None),
            ("INVITE x\r\nCall-ID: a1@h@z\r\n\r\n", None),
            ("INVITE x\rCall-ID: a1@h\rX: y\r\r", Some("a1@h")),
            (&long(254), None),
        ] {
            let found = call_id(message.as_bytes()).map(|at| &message[at]);
            assert_eq!(found, id, "{message:?}");
        }
        assert_eq!(call_id(long(253).as_bytes()).map(|at| at.len()), Some(LONGEST));
    }

    proptest! {
        #[test]
        fn any_text_is_read_within_its_bounds(pieces in prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec!["\r\n", "\n", "Call-ID", "i", ":", " ", "@", "a1"]).prop_map(|text| text.as_bytes().to_vec()),
                prop::collection::vec(any::<u8>(), 0..6),
            ],
            0..16,
        )) {
            let text = pieces.concat();
            if let Some(at) = call_id(&text) {
                prop_assert!(!at.is_empty() && at.len() <= LONGEST && at.end < text.len());
            }
        }
    }
}
