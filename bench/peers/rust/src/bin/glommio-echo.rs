//! glommio: the loop of its example `echo`, with a buffer that holds more than one byte.

use std::{io, net::SocketAddr};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::{
    GlommioError, LocalExecutorBuilder, Placement,
    net::{TcpListener, TcpStream},
};
use peers::{BUFFER_BYTES, RING_ENTRIES, address};

fn main() -> Result<(), GlommioError<()>> {
    let address = address();
    let executor = LocalExecutorBuilder::new(Placement::Unbound).ring_depth(RING_ENTRIES as usize);
    executor.spawn(move || serve(address))?.join()?
}

async fn serve(address: SocketAddr) -> Result<(), GlommioError<()>> {
    let listener = TcpListener::bind(address)?;
    loop {
        let stream = listener.accept().await?;
        glommio::spawn_local(echo(stream)).detach();
    }
}

/// An error ends this connection only.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..read]).await?;
    }
}
