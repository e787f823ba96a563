//! A producer's place in the state machine: when it is told to go on, to pause and to stop (P1-P3, C8, C9).

use std::any::Any;

use super::{Connection, Phase, Step, WriteHalf};

/// A producer, as the machine keeps it: only the drivers and the transport know what it is.
pub type AnyProducer = Box<dyn Any + Send>;

/// What a producer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Produce {
    /// Write, or go on writing.
    Resume,
    /// Write no more for now.
    Pause,
    /// Nothing that is written will be sent any more.
    Stop,
}

/// Why a producer was not registered.
#[derive(Debug)]
pub enum NotRegistered {
    /// Another one is.
    Taken(AnyProducer),
    /// The connection takes no output.
    Closed(AnyProducer),
}

/// A producer that is registered.
#[derive(Debug)]
pub(super) struct Producing {
    /// None while it is being told something.
    producer: Option<AnyProducer>,
    /// It goes on by itself until it is paused (push); one that does not is asked for each piece (pull).
    streaming: bool,
    /// A push producer is to be told of a crossing of the high mark, and then of one of the low mark.
    pause_due: bool,
    resume_due: bool,
    /// A pull producer is to be asked as soon as nothing is left to send.
    hungry: bool,
}

/// What the user asks.
impl Connection {
    /// Takes a producer, which is told from now on how the output fares.
    pub fn register_producer(&mut self, producer: AnyProducer, streaming: bool) -> Result<(), NotRegistered> {
        if self.has_producer() {
            return Err(NotRegistered::Taken(producer));
        }
        if self.phase != Phase::Open || self.write_half != WriteHalf::Open {
            return Err(NotRegistered::Closed(producer));
        }
        self.rare().producing = Some(Producing {
            producer: Some(producer),
            streaming,
            // Above the mark already, and nobody is about to be told so.
            pause_due: streaming && self.output.is_full() && !self.output.owes_pause(),
            resume_due: false,
            hungry: !streaming,
        });
        Ok(())
    }

    /// Lets the producer go, which is told nothing any more; a close that waits for it goes on. The producer, unless it is being told something.
    pub fn unregister_producer(&mut self) -> Option<AnyProducer> {
        let producing = self.rare.as_mut()?.producing.take()?;
        if self.phase == Phase::Producing {
            self.phase = Phase::Flushing;
            self.rare().deadline = None;
        }
        producing.producer
    }

    /// Takes a producer back that was told something; gives it away again if it is not registered any more.
    pub fn producer_told(&mut self, producer: AnyProducer) -> Option<AnyProducer> {
        match self.producing() {
            Some(Producing { producer: place @ None, .. }) => {
                *place = Some(producer);
                None
            }
            _ => Some(producer),
        }
    }
}

/// For the other questions.
impl Connection {
    pub(super) fn has_producer(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.producing.is_some())
    }

    /// Whether a close or a half-close that was asked for waits for a producer, which may write until it is unregistered.
    #[cold]
    pub(super) fn takes_producers_output(&self) -> bool {
        let waits = match self.write_half {
            WriteHalf::Open => self.phase == Phase::Producing,
            WriteHalf::Ending => matches!(self.phase, Phase::Open | Phase::Producing),
            WriteHalf::Shut | WriteHalf::Broken(_) => false,
        };
        waits && self.has_producer()
    }

    /// Whether a producer is asked for more as soon as the batch in flight comes back.
    pub(super) fn pulls(&self) -> bool {
        let producing = self.rare.as_ref().and_then(|rare| rare.producing.as_ref());
        producing.is_some_and(|producing| !producing.streaming)
    }

    /// A batch came back, so much the lighter.
    pub(super) fn mind_producer(&mut self, sent: usize) {
        let (flushed, closing) = (self.output.is_flushed(), self.phase == Phase::Producing);
        if let Some(producing) = self.producing() {
            producing.hungry |= flushed && !producing.streaming;
        }
        if closing && sent > 0 {
            // The peer goes on reading: the time for closing begins anew.
            self.rare().deadline = None;
        }
    }

    /// The protocol is being told that a mark was crossed, and so is a push producer.
    pub(super) fn owe_producer(&mut self, what: Produce) {
        if let Some(producing) = self.producing().filter(|producing| producing.streaming) {
            producing.pause_due |= what == Produce::Pause;
            producing.resume_due |= what == Produce::Resume;
        }
    }

    /// What the producer is to be told, if anything.
    pub(super) fn step_producer(&mut self) -> Option<Step> {
        if !matches!(self.phase, Phase::Open | Phase::Producing) {
            return self.step_stop_producer();
        }
        let flushed = self.output.is_flushed();
        let producing = self.producing()?;
        // While it is being told something it is not here, and is told nothing else.
        producing.producer.as_ref()?;
        let what = if std::mem::take(&mut producing.pause_due) {
            Produce::Pause
        } else if std::mem::take(&mut producing.resume_due) || (producing.hungry && flushed) {
            Produce::Resume
        } else {
            return None;
        };
        producing.hungry = false;
        Some(Step::Produce(what, producing.producer.take()?))
    }

    /// Nothing that it writes would be sent any more.
    pub(super) fn step_stop_producer(&mut self) -> Option<Step> {
        let producing = self.rare.as_mut()?.producing.take()?;
        Some(Step::Produce(Produce::Stop, producing.producer?))
    }

    fn producing(&mut self) -> Option<&mut Producing> {
        self.rare.as_mut()?.producing.as_mut()
    }
}
