//! What an error of accept means: one pure function, as accept(2) and its neighbours describe the numbers.

use crate::error::Errno;

/// What to do about a failed accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcceptDecision {
    /// That peer is gone or was not let in; accept the next one at once.
    Next,
    /// Out of descriptors: shed those who wait through the reserved descriptor, then rest.
    Shed,
    /// Out of memory or of something else that may come back: rest, then accept again.
    Rest,
    /// The listening socket itself was closed or never was one: the port is over.
    Over,
}

/// Decides by the number alone.
pub(crate) fn decide(errno: Errno) -> AcceptDecision {
    match errno.raw() {
        libc::EMFILE | libc::ENFILE => AcceptDecision::Shed,
        // accept(2) passes on what happened to the new connection before it was accepted.
        libc::ECONNABORTED
        | libc::ECONNRESET
        | libc::EPROTO
        | libc::EPERM
        | libc::EINTR
        | libc::ENETDOWN
        | libc::ENOPROTOOPT
        | libc::EHOSTDOWN
        | libc::ENONET
        | libc::EHOSTUNREACH
        | libc::ENETUNREACH
        | libc::ETIMEDOUT
        | libc::EAGAIN => AcceptDecision::Next,
        libc::EBADF | libc::ENOTSOCK | libc::EINVAL | libc::EOPNOTSUPP | libc::ECANCELED => {
            AcceptDecision::Over
        }
        _ => AcceptDecision::Rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AcceptDecision::{Next, Over, Rest, Shed};

    #[test]
    fn l4_every_errno_of_accept_has_its_decision() {
        let table = [
            (libc::EMFILE, Shed),
            (libc::ENFILE, Shed),
            (libc::ENOBUFS, Rest),
            (libc::ENOMEM, Rest),
            (libc::ENOSPC, Rest),
            (libc::ECONNABORTED, Next),
            (libc::EPERM, Next),
            (libc::EINTR, Next),
            (libc::EPROTO, Next),
            (libc::ENETDOWN, Next),
            (libc::EAGAIN, Next),
            (libc::EBADF, Over),
            (libc::EINVAL, Over),
            (libc::ENOTSOCK, Over),
            (libc::ECANCELED, Over),
        ];
        for (raw, decision) in table {
            assert_eq!(decide(Errno::from_raw(raw)), decision, "{:?}", Errno::from_raw(raw));
        }
    }
}
