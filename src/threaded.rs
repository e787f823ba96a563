//! WIP
use crate::{error::Error, factory::Factory, reactor::Reactor};
pub(crate) trait ThreadHost {}
pub(crate) struct ThreadedFactory<F>(F);
impl<F: Factory> ThreadedFactory<F> {
    pub(crate) fn new(f: F) -> Self {
        Self(f)
    }
}
impl<F: Factory> ThreadHost for ThreadedFactory<F> {}
pub(crate) fn run(_r: Reactor) -> Result<(), Error> {
    Err(Error::NotRunning)
}
