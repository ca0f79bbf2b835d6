//! What librados and librbd say when they fail, in the words of the taxonomy.

use std::ffi::c_int;
use std::fmt;

use dunnage_model::{Error, Kind};

/// How the detail of an error begins whose cause is a fence.
const FENCED: &str = "this client was fenced";

/// Whether Ceph refused the call because this client is on its blocklist. It stays so for the connection that made the call;
/// a new one is another client.
pub fn is_fenced(error: &Error) -> bool {
    error.kind == Kind::Permission && error.detail.starts_with(FENCED)
}

/// The error of a call that returned `code`, a negated errno. `what` says which call, in words.
pub fn failed(what: impl fmt::Display, code: c_int) -> Error {
    let errno = code.saturating_neg();
    let said = std::io::Error::from_raw_os_error(errno);
    let detail = format!("{what}: {said}");
    match errno {
        libc::ESHUTDOWN => {
            let detail = format!("{FENCED}: Ceph has its address on the blocklist ({what})");
            Error::new(Kind::Permission, detail, "another node has taken over; what this one had in hand is lost to it")
        }
        libc::EPERM | libc::EACCES => {
            let next = "look at the key and its caps: it needs mon 'profile rbd' and osd 'profile rbd'";
            Error::new(Kind::Permission, detail, next)
        }
        libc::ETIMEDOUT | libc::ENOTCONN | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ECONNREFUSED | libc::ECONNRESET => {
            Error::unavailable(format!("Ceph does not answer: {detail}"), "look at 'ceph status' and at the network to the monitors")
        }
        libc::ENOSPC | libc::EDQUOT => Error::new(Kind::LimitReached, detail, "look at 'ceph df': the pool or its quota is full"),
        libc::ENOENT => Error::not_found(detail, "look at what there is with 'rbd ls' and 'ceph osd pool ls'"),
        libc::EEXIST => Error::new(Kind::ExistsIncompatible, detail, "use another name, or remove what is there"),
        libc::EINVAL | libc::ENAMETOOLONG => Error::invalid("name", detail, "look at the name and the size that were asked for"),
        _ => Error::internal(detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_that_a_caller_treats_by_itself_has_its_word() {
        let word = |errno: c_int| failed("cannot write", -errno).word();
        assert_eq!(word(libc::EPERM), "permission");
        assert_eq!(word(libc::EACCES), "permission");
        for errno in [libc::ETIMEDOUT, libc::ENOTCONN, libc::EHOSTUNREACH, libc::ECONNREFUSED] {
            assert_eq!(word(errno), "platform_unavailable");
        }
        assert_eq!(word(libc::ENOSPC), "limit_reached");
        assert_eq!(word(libc::EDQUOT), "limit_reached");
        assert_eq!(word(libc::ENOENT), "not_found");
        assert_eq!(word(libc::EEXIST), "exists_incompatible");
        assert_eq!(word(libc::EIO), "internal");
        assert_eq!(failed("it", c_int::MIN).word(), "internal");
    }

    #[test]
    fn a_fence_is_told_from_a_key_without_rights_even_after_it_has_crossed_a_socket() {
        let fenced = failed("cannot write", -libc::ESHUTDOWN);
        let text = serde_json::to_string(&fenced).expect("json");
        assert!(is_fenced(&serde_json::from_str(&text).expect("back")));
        assert!(!is_fenced(&failed("this client was fenced", -libc::EIO)));
        assert!(!is_fenced(&failed("cannot write", -libc::EPERM)));
    }

    #[test]
    fn a_key_without_rights_is_told_which_ones_it_needs() {
        assert!(failed("cannot connect", -libc::EACCES).next.contains("profile rbd"));
    }
}
