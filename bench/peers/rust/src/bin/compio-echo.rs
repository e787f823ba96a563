//! compio on io_uring: its documented `read` and `write_all`, which own the buffer in between.

use std::io;

use compio::{
    BufResult,
    io::{AsyncRead, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use peers::{BACKLOG, BUFFER_BYTES, address};

// The one thread looks at its completions anyway; without this it is interrupted for each.
#[compio::main(with_proactor(coop_taskrun = true, taskrun_flag = true))]
async fn main() -> io::Result<()> {
    // `TcpListener::bind` has a queue of 128 only.
    let socket = TcpSocket::new_v4().await?;
    socket.set_reuseaddr(true)?;
    socket.bind(address()).await?;
    let listener = socket.listen(BACKLOG as i32).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        compio::runtime::spawn(echo(stream)).detach();
    }
}

/// An error ends this connection only.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let BufResult(result, read_into) = stream.read(buffer).await;
        if result? == 0 {
            return Ok(());
        }
        let BufResult(result, written) = stream.write_all(read_into).await;
        result?;
        buffer = written;
        buffer.clear();
    }
}
