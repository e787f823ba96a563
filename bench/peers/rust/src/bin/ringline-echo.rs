//! ringline on io_uring with one worker: the loop of its README, which waits for what it has sent.

use ringline::{AsyncEventHandler, ConfigBuilder, ConnCtx, Error, ParseResult, RinglineBuilder};

use peers::address;

struct Echo;

impl AsyncEventHandler for Echo {
    #[expect(clippy::manual_async_fn, reason = "an async fn would borrow the handler, which this may not")]
    fn on_accept(&self, connection: ConnCtx) -> impl Future<Output = ()> + 'static {
        async move { drop(echo(connection).await) }
    }

    fn create_for_worker(_: usize) -> Self {
        Echo
    }
}

/// An error ends this connection only.
async fn echo(connection: ConnCtx) -> std::io::Result<()> {
    loop {
        let mut sent = None;
        let read = connection.with_data(|data| {
            sent = Some(connection.send(data));
            ParseResult::Consumed(data.len())
        });
        if read.await == 0 {
            return Ok(());
        }
        if let Some(sent) = sent {
            sent?.await?;
        }
    }
}

fn main() -> Result<(), Error> {
    let config = ConfigBuilder::new().workers(1).pin_to_core(false).build()?;
    let (_shutdown, workers) = RinglineBuilder::new(config).bind(address()).launch::<Echo>()?;
    for worker in workers {
        worker.join().expect("the worker does not panic")?;
    }
    Ok(())
}
