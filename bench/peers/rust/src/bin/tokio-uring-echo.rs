//! tokio-uring: the loop of its example `tcp_listener`.

use std::io;

use peers::{BUFFER_BYTES, RING_ENTRIES, address};
use tokio_uring::{
    buf::BoundedBuf,
    net::{TcpListener, TcpStream},
};

fn main() -> io::Result<()> {
    let address = address();
    let mut ring = tokio_uring::uring_builder();
    // The one thread looks at its completions anyway; without this it is interrupted for each.
    ring.setup_coop_taskrun();
    tokio_uring::builder().entries(RING_ENTRIES).uring_builder(&ring).start(async {
        let listener = TcpListener::bind(address)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio_uring::spawn(echo(stream));
        }
    })
}

/// An error ends this connection only.
async fn echo(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (result, read_into) = stream.read(buffer).await;
        let read = result?;
        if read == 0 {
            return Ok(());
        }
        let (result, written) = stream.write_all(read_into.slice(..read)).await;
        result?;
        buffer = written.into_inner();
    }
}
