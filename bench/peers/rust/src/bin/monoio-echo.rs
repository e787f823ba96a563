//! monoio on io_uring: the loop of its README, with the driver that is never epoll.

use std::{io, net::SocketAddr};

use monoio::{
    IoUringDriver, RuntimeBuilder,
    io::{AsyncReadRent, AsyncWriteRentExt},
    net::{TcpListener, TcpStream},
};
use peers::{BUFFER_BYTES, address};

fn main() -> io::Result<()> {
    let address = address();
    let mut ring = io_uring::IoUring::builder();
    // The one thread looks at its completions anyway; without this it is interrupted for each.
    ring.setup_coop_taskrun();
    RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring).build()?.block_on(serve(address))
}

async fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    loop {
        let (stream, _) = listener.accept().await?;
        monoio::spawn(echo(stream));
    }
}

/// An error ends this connection only.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER_BYTES);
    let mut result;
    loop {
        (result, buffer) = stream.read(buffer).await;
        if result? == 0 {
            return Ok(());
        }
        (result, buffer) = stream.write_all(buffer).await;
        result?;
        buffer.clear();
    }
}
