//! Who is at the other end of a socket.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The process that connected the Unix socket, as the kernel noted it at that moment, numbered as the caller
/// sees processes. A worker on the host sees the container's init as its engine does (`State.Pid`).
///
/// 0 means a process that the caller cannot see.
pub fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to live values of the lengths that are given with them.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(credentials.pid) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_names_the_process_that_connected_it() {
        let (left, right) = UnixStream::pair().expect("a pair");
        assert_eq!(super::peer_pid(left.as_fd()).expect("credentials"), std::process::id() as i32);
        drop(right);
        let file = std::fs::File::open("/dev/null").expect("opens");
        assert!(super::peer_pid(file.as_fd()).is_err());
    }
}
