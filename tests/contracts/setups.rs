//! The backends that every statement is tested on, each in the ways in which it can be set up.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ringspun::{Backend, Limits, Reactor, ReactorBuilder, Tier, UringOptions, testing::Case};

/// One way of running a reactor, and the test that runs on it.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    /// What the cases of the suite call it.
    pub(crate) name: &'static str,
    /// The backend that is asked for.
    pub(crate) backend: Backend,
    /// The test's path, as the test binary takes it with `--exact`.
    pub(crate) test: &'static str,
    options: fn() -> UringOptions,
}

/// All of them: `on_every_backend!` makes a case of each.
pub(crate) const SETUPS: [Setup; 8] = [
    Setup::new("io_uring", Backend::IoUring, UringOptions::default),
    Setup::new("io_uring_direct", Backend::IoUring, || UringOptions::default().direct(true)),
    Setup::new("io_uring_defer", Backend::IoUring, || UringOptions::default().tier(Tier::Defer)),
    Setup::new("io_uring_coop", Backend::IoUring, || UringOptions::default().tier(Tier::Coop)),
    Setup::new("io_uring_oneshot", Backend::IoUring, || UringOptions::default().multishot(false)),
    Setup::new("io_uring_least", Backend::IoUring, || UringOptions::default().queues(2, 4).buffers(4, 4096)),
    Setup::new("epoll", Backend::Epoll, UringOptions::default),
    Setup::new("threads", Backend::Threads, UringOptions::default),
];

/// What is not tested where: statement, setup, reason. C1-C7, C10-C14 and L1-L4 allow no line here.
pub(crate) const SKIPS: [(&str, &str, &str); 0] = [];

impl Setup {
    const fn new(name: &'static str, backend: Backend, options: fn() -> UringOptions) -> Self {
        Self { name, backend, test: "", options }
    }

    /// This setup's options of the io_uring backend.
    pub(crate) fn uring(&self) -> UringOptions {
        (self.options)()
    }

    pub(crate) fn is_uring(&self) -> bool {
        self.backend == Backend::IoUring
    }

    pub(crate) fn is_threads(&self) -> bool {
        self.backend == Backend::Threads
    }

    /// An address of this machine that no other test is likely to have: made of the test's name.
    pub(crate) fn own_address(&self) -> IpAddr {
        let mut hasher = DefaultHasher::new();
        self.test.hash(&mut hasher);
        let [a, b, c, ..] = hasher.finish().to_be_bytes();
        Ipv4Addr::new(127, 1 + a % 250, b, 1 + c % 250).into()
    }

    /// A builder for this setup, without signals.
    pub(crate) fn builder(&self) -> ReactorBuilder {
        Reactor::builder().backend(self.backend).uring(self.uring()).signals(false)
    }

    /// A reactor on this setup.
    pub(crate) fn reactor(&self) -> Reactor {
        self.build(self.builder())
    }

    /// A reactor with these limits.
    pub(crate) fn limited(&self, limits: Limits) -> Reactor {
        self.build(self.builder().limits(limits))
    }

    /// Builds a reactor and makes sure that it is the one that was asked for.
    pub(crate) fn build(&self, builder: ReactorBuilder) -> Reactor {
        let reactor = builder.build().unwrap_or_else(|error| panic!("{}: {error}", self.name));
        assert_eq!(reactor.backend().backend, self.backend, "{}: another backend runs", self.name);
        reactor
    }
}

/// Runs one case of a statement, unless the table of skips says otherwise.
pub(crate) fn run_case(case: Case, body: fn(&Setup)) {
    let Case { test: statement, setup, path, .. } = case;
    let skip = SKIPS.iter().find(|(skipped, on, _)| *skipped == statement && *on == setup);
    if let Some((.., reason)) = skip {
        println!("{statement} on {setup} is skipped: {reason}");
        return;
    }
    crate::kit::keep_log_records();
    let known = SETUPS.into_iter().find(|known| known.name == setup);
    let setup = known.unwrap_or_else(|| panic!("{setup} is no setup"));
    body(&Setup { test: without_crate(path), ..setup });
}

/// `contracts::life::c1_..::epoll` without its first part, which the test binary does not want.
fn without_crate(path: &'static str) -> &'static str {
    path.split_once("::").map_or(path, |(_, path)| path)
}

/// Makes a module of each of these functions, with a test for every setup.
macro_rules! on_every_backend {
    ($($statement:ident),+ $(,)?) => {
        ringspun::testing::on_every_backend!(
            $crate::setups::run_case
            [io_uring io_uring_direct io_uring_defer io_uring_coop io_uring_oneshot io_uring_least epoll threads]
            $($statement),+
        );
    };
}
pub(crate) use on_every_backend;

/// A shared buffer, for `write_shared`.
pub(crate) fn shared(bytes: &[u8]) -> Arc<[u8]> {
    Arc::from(bytes)
}
