//! The unsafe part of the tests: forks, signals to one thread, filters of system calls.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use nix::{
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        socket::{getsockopt, setsockopt, sockopt},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

/// Signals that [`count_signals`]'s handler took.
static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(_: i32) {
    SIGNALS.fetch_add(1, SeqCst);
}

/// Counts this signal instead of whatever it did before, and interrupts system calls with it.
pub(crate) fn count_signals(signal: Signal) {
    let action = SigAction::new(SigHandler::Handler(count_signal), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler touches an atomic and nothing else.
    unsafe { sigaction(signal, &action) }.unwrap();
}

pub(crate) fn counted_signals() -> usize {
    SIGNALS.load(SeqCst)
}

/// Sends a signal to one thread of this process. One that has ended is skipped.
pub(crate) fn signal_thread(thread: Pid, signal: Signal) {
    // SAFETY: tgkill(2) takes numbers only; a thread that is gone is an error that changes nothing.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread.as_raw(), signal as i32) };
}

/// Gives this process's listening sockets, and whom they accept, a send buffer of `bytes`.
pub(crate) fn narrow_listeners(bytes: usize) {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let open: Vec<i32> =
        open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    let mut narrowed = 0;
    for fd in open {
        // SAFETY: the number is asked for nothing but a socket option; one that has been closed since is an error here.
        let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        if getsockopt(&socket, sockopt::AcceptConn) == Ok(true) {
            setsockopt(&socket, sockopt::SndBuf, &bytes).unwrap();
            narrowed += 1;
        }
    }
    assert!(narrowed > 0, "nobody listens");
}

/// Forks a child that leaves at once, without touching anything, and waits for it.
pub(crate) fn fork_and_leave() {
    // SAFETY: the child calls nothing but _exit(2), which is async-signal-safe.
    match unsafe { fork() }.unwrap() {
        // SAFETY: as above; no destructor and no handler runs.
        ForkResult::Child => unsafe { libc::_exit(0) },
        ForkResult::Parent { child } => {
            let ended = loop {
                match waitpid(child, None) {
                    Err(nix::errno::Errno::EINTR) => {}
                    ended => break ended.unwrap(),
                }
            };
            assert_eq!(ended, WaitStatus::Exited(child, 0));
        }
    }
}

/// Forks a child that stays, with all that the server has open, until it is killed.
pub(crate) fn fork_and_stay() -> Pid {
    // SAFETY: the child calls nothing but pause(2) and _exit(2), which are async-signal-safe.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => loop {
            // SAFETY: as above.
            unsafe { libc::pause() };
        },
        ForkResult::Parent { child } => child,
    }
}

/// Has the kernel answer this errno to io_uring_setup(2), for all threads of this process.
pub(crate) fn deny_io_uring(errno: i32) {
    deny(libc::SYS_io_uring_setup, errno);
}

/// Has no thread of this process start another one, as if there were too many.
pub(crate) fn deny_threads() {
    [libc::SYS_clone, libc::SYS_clone3].into_iter().for_each(|call| deny(call, libc::EAGAIN));
}

/// Has the kernel answer this errno to a system call, for all threads of this process.
pub(crate) fn deny(call: libc::c_long, errno: i32) {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the system call; if it is this one's, the errno; else go on.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live until the call returns; the kernel copies them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (mode, all_threads) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
        assert_eq!(libc::syscall(libc::SYS_seccomp, mode, all_threads, &raw const program), 0);
    }
}
