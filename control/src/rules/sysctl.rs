//! Settings as people write them, held against those that there are.

use nix::libc::{EINVAL, ENOENT, EOPNOTSUPP};
use shunt_dataplane::service::{SysctlError, Sysctls, absent};

use super::Refusal;
use super::check::short;

/// One setting or all: names, and values as the kernel's files show them.
pub(super) fn list(sysctls: &Sysctls, name: Option<&str>) -> Result<Vec<(String, String)>, Refusal> {
    let listed = sysctls.iter().filter(|(known, _)| name.is_none_or(|name| name == *known));
    let listed: Vec<_> = listed.map(|(known, value)| (known.to_owned(), value.to_string())).collect();
    match name {
        Some(name) if listed.is_empty() => Err(unknown(name)),
        _ => Ok(listed),
    }
}

/// Changes a setting.
pub(super) fn set(sysctls: &mut Sysctls, name: &str, value: &str) -> Result<(), Refusal> {
    // A name that is wrong is said to be, whatever the value.
    list(sysctls, Some(name))?;
    let invalid = |why| Refusal { errno: EINVAL, why };
    let number = integer(value)
        .ok_or_else(|| invalid(format!("{name} takes a 32-bit number, and {:?} is none", short(value))))?;
    sysctls.set(name, number).map_err(|error| match error {
        SysctlError::Unknown => unknown(name),
        SysctlError::OutOfBounds(bounds) => {
            invalid(format!("{name} takes {} to {}, not {number}", bounds.start(), bounds.end()))
        }
    })
}

fn unknown(name: &str) -> Refusal {
    if let Some(why) = absent(name) {
        return Refusal { errno: EOPNOTSUPP, why: format!("{name} has no meaning here: {why}") };
    }
    let known: Vec<_> = Sysctls::default().iter().map(|(known, _)| known).collect();
    let name: String = name.chars().take(LONGEST_NAME).collect();
    let why = format!("There is no setting {name:?} here (there are {})", known.join(", "));
    Refusal { errno: ENOENT, why }
}

/// As much of a name as a sentence repeats: the kernel's longest, `expire_quiescent_template`, and some.
const LONGEST_NAME: usize = 32;

/// A number as the kernel's files take it (`proc_dointvec`): decimal, hexadecimal behind `0x`, octal behind `0`.
fn integer(text: &str) -> Option<i32> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let (digits, radix) = match digits.strip_prefix('0') {
        Some(rest) if !rest.is_empty() => rest.strip_prefix(['x', 'X']).map_or((rest, 8), |hex| (hex, 16)),
        _ => (digits, 10),
    };
    // Rust would take a sign here, the kernel does not.
    let number = i64::from_str_radix(digits.strip_prefix(['+', '-']).map_or(digits, |_| ""), radix).ok()?;
    i32::try_from(sign * number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_that_the_kernel_takes() {
        for (text, number) in [
            ("0", 0),
            ("7", 7),
            ("-5", -5),
            ("2147483647", i32::MAX),
            ("-2147483648", i32::MIN),
            ("0x10", 16),
            ("010", 8),
        ] {
            assert_eq!(integer(text), Some(number), "{text}");
        }
        for text in ["", "-", "abc", "1x", "+1", "--1", "-+1", "0x", "0x-1", "08", "1 2", "2147483648"] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn a_refusal_changes_nothing_and_says_what_would_do() {
        let mut sysctls = Sysctls::default();
        let refused = set(&mut sysctls, "sloppy_tcp", "yes").unwrap_err();
        assert_eq!(
            (refused.errno, &*refused.why),
            (EINVAL, "sloppy_tcp takes a 32-bit number, and \"yes\" is none")
        );
        let refused = set(&mut sysctls, "slopy_tcp", "yes").unwrap_err();
        assert_eq!(refused.errno, ENOENT);
        assert!(refused.why.contains("sloppy_sctp, sloppy_tcp"), "{}", refused.why);
        let refused = set(&mut sysctls, "conntrack", "1").unwrap_err();
        assert_eq!(refused.errno, EOPNOTSUPP);
        assert!(refused.why.starts_with("conntrack has no meaning here: netfilter "), "{}", refused.why);
        assert_eq!(sysctls, Sysctls::default());

        set(&mut sysctls, "sloppy_tcp", "1").unwrap();
        assert_eq!(list(&sysctls, Some("sloppy_tcp")), Ok(vec![("sloppy_tcp".to_owned(), "1".to_owned())]));
        assert_eq!(list(&sysctls, None).unwrap().len(), sysctls.iter().count());
    }
}
