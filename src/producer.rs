//! Who writes more than a connection takes at once: producers, as in Twisted, and one that sends a file.

use std::{error, fmt, fs::File, io, io::Read};

use crate::{
    connection::{NotRegistered, Produce},
    transport::Transport,
};

/// Writes to a transport that tells it when to write: Twisted's `IPushProducer` and `IPullProducer`.
///
/// A push producer writes by itself, from timers or other connections' callbacks say, and is told to pause and to go on at the marks
/// of the output ([`Limits::output_high`](crate::Limits::output_high) and `output_low`). A pull producer writes a piece each time it is told to go on, which is whenever
/// all that was written has been sent. Neither call comes from inside another one, nor from inside a write.
pub trait Producer: Send + 'static {
    /// Write, or go on writing. One that has nothing more to write calls [`Transport::unregister_producer`].
    fn resume_producing(&mut self, transport: &mut Transport<'_>);

    /// Write no more until [`resume_producing`](Self::resume_producing). A pull producer is never told.
    fn pause_producing(&mut self, transport: &mut Transport<'_>) {
        let _ = transport;
    }

    /// The connection is over, closes because its peer has, or was closed when this was registered: nothing that is written will be sent any
    /// more. Comes once, unless it was unregistered, or panicked, before.
    fn stop_producing(&mut self) {}
}

/// How a producer produces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Production {
    /// By itself, until it is paused (Twisted's `streaming=True`).
    Push,
    /// A piece at a time, when it is asked (Twisted's `streaming=False`).
    Pull,
}

/// A producer was to be registered where another one is. Unregister that first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadyProducing;

impl fmt::Display for AlreadyProducing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another producer is registered; unregister it first")
    }
}

impl error::Error for AlreadyProducing {}

/// As the state machine keeps it, which knows no more than that it is something.
type Kept = Box<dyn Producer>;

impl Transport<'_> {
    /// Has a producer write to this connection. Until it is [unregistered](Self::unregister_producer), `lose_connection` and
    /// `lose_write_connection` wait, and what is written after them is sent. On a connection that takes no output it is stopped at once.
    ///
    /// # Errors
    /// If another one is registered.
    pub fn register_producer(
        &mut self,
        producer: impl Producer,
        production: Production,
    ) -> Result<(), AlreadyProducing> {
        let kept: Kept = Box::new(producer);
        let mut refused = Some(NotRegistered::Closed(Box::new(kept)));
        self.change(|connection| {
            if let Some(NotRegistered::Closed(producer)) = refused.take() {
                refused = connection.register_producer(producer, production == Production::Push).err();
            }
        });
        match refused {
            None => Ok(()),
            Some(NotRegistered::Taken(_)) => Err(AlreadyProducing),
            Some(NotRegistered::Closed(producer)) => {
                if let Ok(mut producer) = producer.downcast::<Kept>() {
                    producer.stop_producing();
                }
                Ok(())
            }
        }
    }

    /// Lets the producer go, which has written its last. A close that waits for it goes on. Does nothing if there is none.
    pub fn unregister_producer(&mut self) {
        let mut gone = None;
        self.change(|connection| gone = connection.unregister_producer());
        // Dropped here, where nobody holds the connection.
        drop(gone);
    }
}

/// Tells a producer that the state machine gave out.
pub(crate) fn tell(
    producer: &mut crate::connection::AnyProducer,
    transport: &mut Transport<'_>,
    what: Produce,
) {
    let Some(producer) = producer.downcast_mut::<Kept>() else { return };
    match what {
        Produce::Resume => producer.resume_producing(transport),
        Produce::Pause => producer.pause_producing(transport),
        Produce::Stop => producer.stop_producing(),
    }
}

/// Bytes that a file is read by.
const CHUNK_BYTES: usize = 64 << 10;

/// Sends a file, or whatever else can be read without waiting, a piece at a time: a [pull](Production::Pull) producer that unregisters itself at the
/// end. A file that cannot be read ends the connection with the error. Each piece, of 64 KiB, is read where the producer is asked: a
/// slow disk holds up the loop, or on threads the connection, and those that wait for room.
///
/// ```
/// use ringspun::{Cx, FileSender, Production};
///
/// fn send_and_close<F>(cx: &mut Cx<'_, F>, path: &str) {
///     match std::fs::File::open(path) {
///         Ok(file) => {
///             let _ = cx.transport.register_producer(FileSender::new(file), Production::Pull);
///             cx.transport.lose_connection();
///         }
///         Err(error) => cx.transport.fail(error),
///     }
/// }
/// ```
#[derive(Debug)]
pub struct FileSender<R = File> {
    from: R,
}

impl<R: Read + Send + 'static> FileSender<R> {
    /// Sends what is left of it.
    pub fn new(from: R) -> Self {
        Self { from }
    }
}

impl<R: Read + Send + 'static> Producer for FileSender<R> {
    fn resume_producing(&mut self, transport: &mut Transport<'_>) {
        let mut read = Ok(0);
        let _ = transport.write_with(|out| {
            read = io::copy(&mut (&mut self.from).take(CHUNK_BYTES as u64), out);
        });
        match read {
            Ok(0) => transport.unregister_producer(),
            Ok(_) => {}
            Err(error) => transport.fail(error),
        }
    }
}
