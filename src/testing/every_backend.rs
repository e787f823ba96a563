//! A test for each backend, made of one function.

use std::env;

use crate::{builder::ReactorBuilder, error::Error, options::Backend, reactor::Reactor};

/// Names the backends that must be had, with commas between them.
const REQUIRE: &str = "RINGSPUN_REQUIRE";

/// Which test runs, and on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Case {
    /// The name of the function that tests.
    pub test: &'static str,
    /// What it runs on: a backend, as `RINGSPUN_BACKEND` spells it, or a set-up of the program's own.
    pub setup: &'static str,
    /// The whole path of the test, with the name of its crate.
    pub path: &'static str,
}

impl Case {
    #[doc(hidden)]
    pub const fn new(test: &'static str, setup: &'static str, path: &'static str) -> Self {
        Self { test, setup, path }
    }
}

/// Makes tests of functions that get a [`ReactorBuilder`]: of `echoes` it makes `echoes::io_uring`, `echoes::epoll` and `echoes::threads`.
///
/// ```
/// # // A doctest has no test harness, so the function is only made.
/// use ringspun::{Error, ReactorBuilder};
///
/// ringspun::testing::on_every_backend!(stops_when_it_is_told);
///
/// fn stops_when_it_is_told(builder: ReactorBuilder) {
///     let reactor = builder.build().unwrap();
///     reactor.call_when_running(|reactor| reactor.stop().unwrap());
///     reactor.run().unwrap();
/// }
/// ```
///
/// Each says what it ran on. A backend that cannot be had here, such as io_uring where it is denied, is skipped, and its test says why
/// (`--show-output` shows both); if the environment variable `RINGSPUN_REQUIRE` names that backend (`RINGSPUN_REQUIRE=io_uring,epoll`), the test
/// fails instead. The builder leaves signals alone, which are for all tests of a process.
///
/// The program's own set-ups come in square brackets, with a function in front of them that is told the [`Case`] and is to run the test on
/// it; what it hands to the test is its own affair. ringspun's own suite of contracts uses it with eight set-ups.
///
/// ```
/// use ringspun::{Limits, ReactorBuilder, testing::Case};
///
/// ringspun::testing::on_every_backend!(crate::run_with_limits [small large] refuses_what_is_too_much);
///
/// # #[allow(dead_code)]
/// fn run_with_limits(case: Case, test: fn(Limits)) {
///     let output_max = if case.setup == "small" { 1 << 10 } else { 1 << 20 };
///     test(Limits { output_max, ..Limits::default() });
/// }
///
/// # #[allow(dead_code)]
/// fn refuses_what_is_too_much(limits: Limits) {
///     assert!(limits.output_max >= 1 << 10);
/// }
/// # fn main() {}
/// ```
#[doc(hidden)]
#[macro_export]
macro_rules! __on_every_backend {
    ($($test:ident),+ $(,)?) => {
        $crate::__on_every_backend!($crate::testing::run_on [io_uring epoll threads] $($test),+);
    };
    ($run:path [$($setups:ident)+] $($test:ident),+ $(,)?) => {
        $crate::__on_every_backend!(@modules $run, [$($setups)+] $($test)+);
    };
    (@modules $run:path, $setups:tt $($test:ident)+) => {
        $($crate::__on_every_backend!(@module $run, $setups $test);)+
    };
    (@module $run:path, [$($setup:ident)+] $test:ident) => {
        mod $test {
            $(
                #[test]
                fn $setup() {
                    let path = concat!(module_path!(), "::", stringify!($setup));
                    let case = $crate::testing::Case::new(stringify!($test), stringify!($setup), path);
                    $run(case, super::$test);
                }
            )+
        }
    };
}

/// What [`on_every_backend!`](super::on_every_backend) does with a test unless it is told otherwise: runs it on the backend that the case names, or says why it does not.
///
/// # Panics
/// If the test does, if the case names no backend, or if that cannot be had though `RINGSPUN_REQUIRE` names it.
pub fn run_on(case: Case, test: impl FnOnce(ReactorBuilder)) {
    let backend: Backend = case.setup.parse().unwrap_or_else(|error| panic!("{error}"));
    let builder = Reactor::builder().backend(backend).signals(false);
    let built = builder.clone().build().map(|reactor| reactor.backend().to_string());
    let required = env::var(REQUIRE).unwrap_or_default();
    match judge(case.setup, built, &required) {
        Ok(info) => {
            println!("{} runs on {info}", case.test);
            test(builder);
        }
        Err(why) => println!("{} on {} is skipped: {why}", case.test, case.setup),
    }
}

/// What the test runs on, or why it is skipped.
fn judge(backend: &str, built: Result<String, Error>, required: &str) -> Result<String, Error> {
    match built {
        Err(error) if required.split(',').any(|word| word.trim() == backend) => {
            panic!("{REQUIRE}={required}: {error}")
        }
        built => built,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Result<String, Error> {
        Err(Error::Backend { backend: "io_uring", cause: "denied".to_owned(), remedy: "allow it".to_owned() })
    }

    #[test]
    fn what_cannot_be_had_is_skipped_and_says_why() {
        let why = judge("io_uring", denied(), "epoll,threads").unwrap_err();
        assert_eq!(why.to_string(), "the io_uring backend cannot be had: denied; allow it");
        assert_eq!(judge("epoll", Ok("epoll".to_owned()), "epoll").unwrap(), "epoll");
    }

    #[test]
    #[should_panic(expected = "RINGSPUN_REQUIRE=epoll, io_uring: the io_uring backend cannot be had: denied")]
    fn what_must_be_had_fails() {
        let _ = judge("io_uring", denied(), "epoll, io_uring");
    }
}
