//! Where a server listens and where a client connects, as one string says it: Twisted's `serverFromString` and
//! `clientFromString`.

mod description;

use std::{
    error, fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
    time::Duration,
};

pub use self::description::quote_string_argument;
use self::description::{Description, list, number, write_argument};
use crate::address::{Address, UnixAddress};

/// Where a server listens, for [`Reactor::listen`](crate::Reactor::listen). The strings are Twisted's:
///
/// | kind | arguments, in this order or by name | example |
/// |---|---|---|
/// | `tcp` | `port`; `interface`: an IPv4 or IPv6 address; `backlog`; `reusePort`: `yes` or `no` | `tcp:8080:interface=127.0.0.1:backlog=50` |
/// | `unix` | `address`: a path, or `@` and a name without a file; `mode` in octal; `backlog` | `unix:/run/web.sock:mode=660` |
/// | `systemd` | `domain`: `INET`, `INET6` or `UNIX`; `index` or `name` of a socket that this process was started with | `systemd:name=web` |
/// | `fd` | `number` of a listening socket that this process was started with | `fd:3` |
///
/// A colon, an equals sign or a backslash that is to mean itself has a backslash before it: `interface=\:\:1`. What is not there
/// is as in [`ListenOptions`](crate::ListenOptions) and [`UnixListenOptions`](crate::UnixListenOptions). Other than in Twisted, `domain` may be
/// left out (if it is there, it is checked), and a Unix endpoint has no `lockfile`: a file that a process has left behind is taken over without
/// one.
///
/// ```
/// use ringspun::ServerEndpoint;
///
/// let endpoint: ServerEndpoint = "tcp:port=8080:interface=127.0.0.1".parse()?;
/// assert_eq!(endpoint.to_string(), "tcp:8080:interface=127.0.0.1");
/// let error = "tcp:8080:inteface=127.0.0.1".parse::<ServerEndpoint>().unwrap_err();
/// assert!(error.to_string().ends_with("it has port, interface, backlog and reusePort"));
/// # Ok::<(), ringspun::EndpointError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerEndpoint(pub(crate) Server);

/// Where a client connects, for [`Reactor::connect`](crate::Reactor::connect). The strings are Twisted's:
///
/// | kind | arguments, in this order or by name | example |
/// |---|---|---|
/// | `tcp` | `host`: a name or an address; `port`; `timeout` in seconds; `bindAddress` | `tcp:example.com:80:timeout=15` |
/// | `unix` | `path`, or `@` and a name without a file; `timeout` in seconds | `unix:path=/run/web.sock:timeout=5` |
///
/// Escapes are those of a [`ServerEndpoint`]. What is not there is as in [`ConnectOptions`](crate::ConnectOptions).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientEndpoint(pub(crate) Client);

/// The kinds of [`ServerEndpoint`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Server {
    Tcp { port: u16, interface: IpAddr, backlog: Option<u32>, reuse_port: bool },
    Unix { address: UnixAddress, mode: Option<u32>, backlog: Option<u32> },
    Systemd { domain: Option<Domain>, socket: Passed },
    Fd(i32),
}

/// The kinds of [`ClientEndpoint`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    Tcp { host: String, port: u16, timeout: Option<Duration>, bind: Option<IpAddr> },
    Unix { path: UnixAddress, timeout: Option<Duration> },
}

/// Which of the sockets that a process was started with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Passed {
    Index(usize),
    Name(String),
}

/// What a socket that a process was started with is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Domain {
    Inet,
    Inet6,
    Unix,
}

impl Domain {
    const ALL: [(&'static str, Self); 3] =
        [("INET", Self::Inet), ("INET6", Self::Inet6), ("UNIX", Self::Unix)];

    /// That of a listening socket's address.
    pub(crate) fn of(address: &Address) -> Option<Self> {
        match address {
            Address::Tcp(address) if address.is_ipv4() => Some(Self::Inet),
            Address::Tcp(_) => Some(Self::Inet6),
            Address::Unix(_) => Some(Self::Unix),
            _ => None,
        }
    }

    /// As an endpoint string spells it.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, domain)| *domain == self).map_or("", |(name, _)| name)
    }
}

/// What is wrong with an endpoint string: it names the string, the place and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointError {
    endpoint: String,
    position: usize,
    problem: String,
}

impl EndpointError {
    fn new(endpoint: &str, position: usize, problem: impl Into<String>) -> Self {
        Self { endpoint: endpoint.to_owned(), position, problem: problem.into() }
    }

    /// The character at which the mistake was seen, counted from 1; behind the last one where something is missing.
    pub fn position(&self) -> usize {
        self.position
    }
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, position, problem } = self;
        write!(f, "the endpoint \"{endpoint}\" has a mistake at character {position}: {problem}")
    }
}

impl error::Error for EndpointError {}

const TCP_SERVER: &[&str] = &["port", "interface", "backlog", "reusePort"];
const UNIX_SERVER: &[&str] = &["address", "mode", "backlog"];
const SYSTEMD_SERVER: &[&str] = &["domain", "index", "name"];
const FD_SERVER: &[&str] = &["number"];
const TCP_CLIENT: &[&str] = &["host", "port", "timeout", "bindAddress"];
const UNIX_CLIENT: &[&str] = &["path", "timeout"];

impl FromStr for ServerEndpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let description = Description::parse(text)?;
        Ok(Self(match description.kind() {
            "tcp" => tcp_server(description)?,
            "unix" => unix_server(description)?,
            "systemd" => systemd_server(description)?,
            "fd" => {
                let number = |word: &str| number(word, "descriptor to adopt", 3..=i32::MAX as u64);
                Server::Fd(description.arguments(FD_SERVER)?.require("number", number)?)
            }
            _ => return Err(unknown_kind(&description, "server", &["tcp", "unix", "systemd", "fd"])),
        }))
    }
}

impl FromStr for ClientEndpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let description = Description::parse(text)?;
        Ok(Self(match description.kind() {
            "tcp" => tcp_client(description)?,
            "unix" => {
                let arguments = description.arguments(UNIX_CLIENT)?;
                let path = arguments.require("path", unix_address)?;
                Client::Unix { path, timeout: arguments.get("timeout", timeout)? }
            }
            _ => return Err(unknown_kind(&description, "client", &["tcp", "unix"])),
        }))
    }
}

fn unknown_kind(description: &Description<'_>, whose: &str, known: &[&str]) -> EndpointError {
    let (kind, known) = (description.kind(), list(known, "and"));
    description.wrong_kind(match kind {
        "ssl" | "tls" => {
            format!("{kind} is not there yet; use tcp, and let a proxy before it speak TLS")
        }
        _ => format!("\"{kind}\" is no kind of {whose} endpoint; there are {known}"),
    })
}

fn tcp_server(description: Description<'_>) -> Result<Server, EndpointError> {
    let arguments = description.arguments(TCP_SERVER)?;
    Ok(Server::Tcp {
        port: arguments.require("port", |word| number(word, "port", 0..=65535))?,
        interface: arguments.get("interface", ip)?.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        backlog: arguments.get("backlog", backlog)?,
        reuse_port: arguments.get("reusePort", yes_or_no)?.unwrap_or(false),
    })
}

fn unix_server(description: Description<'_>) -> Result<Server, EndpointError> {
    let arguments = description.arguments(UNIX_SERVER)?;
    let address = arguments.require("address", unix_address)?;
    let mode = arguments.get("mode", mode)?;
    if mode.is_some() && address.path().is_none() {
        return Err(arguments.wrong("a name without a file has no mode; leave mode out, or give a path"));
    }
    Ok(Server::Unix { address, mode, backlog: arguments.get("backlog", backlog)? })
}

fn systemd_server(description: Description<'_>) -> Result<Server, EndpointError> {
    let arguments = description.arguments(SYSTEMD_SERVER)?;
    let domain = arguments.get("domain", domain)?;
    let index = arguments.get("index", |word| number(word, "index of a socket", 0..=1_000_000))?;
    let name = arguments.get("name", |word| Ok::<_, String>(word.to_owned()))?;
    let socket = match (index, name) {
        (Some(index), None) => Passed::Index(index),
        (None, Some(name)) => Passed::Name(name),
        (None, None) => return Err(arguments.wrong("systemd needs index=.. or name=..")),
        (Some(_), Some(_)) => {
            return Err(arguments.wrong("systemd takes either index or name; leave one out"));
        }
    };
    Ok(Server::Systemd { domain, socket })
}

fn tcp_client(description: Description<'_>) -> Result<Client, EndpointError> {
    let arguments = description.arguments(TCP_CLIENT)?;
    Ok(Client::Tcp {
        host: arguments.require("host", host)?,
        port: arguments.require("port", |word| number(word, "port to connect to", 1..=65535))?,
        timeout: arguments.get("timeout", timeout)?,
        bind: arguments.get("bindAddress", ip)?,
    })
}

fn ip(word: &str) -> Result<IpAddr, String> {
    word.parse().map_err(|_| r"is no IP address; give one such as 127.0.0.1, or ::1 as \:\:1".to_owned())
}

fn host(word: &str) -> Result<String, String> {
    let there = !word.is_empty();
    there.then(|| word.to_owned()).ok_or_else(|| "names no host; give a name or an address".to_owned())
}

fn unix_address(word: &str) -> Result<UnixAddress, String> {
    let there = !word.is_empty();
    there
        .then(|| word.into())
        .ok_or_else(|| "is no path; give one, or @ and a name without a file".to_owned())
}

fn backlog(word: &str) -> Result<u32, String> {
    number(word, "backlog", 0..=i32::MAX as u64)
}

fn timeout(word: &str) -> Result<Duration, String> {
    number(word, "timeout in whole seconds", 1..=u32::MAX.into()).map(Duration::from_secs)
}

fn mode(word: &str) -> Result<u32, String> {
    let octal = (1..=4).contains(&word.len()) && word.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(word, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.ok_or_else(|| "is no mode of a file; give an octal number from 0 to 777, such as 660".to_owned())
}

fn yes_or_no(word: &str) -> Result<bool, String> {
    match word {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("is neither yes nor no".to_owned()),
    }
}

fn domain(word: &str) -> Result<Domain, String> {
    let found = Domain::ALL.iter().find(|(name, _)| *name == word);
    found.map(|(_, domain)| *domain).ok_or_else(|| "is no domain; give INET, INET6 or UNIX".to_owned())
}

impl fmt::Display for ServerEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        match &self.0 {
            Server::Tcp { port, interface, backlog, reuse_port } => {
                text += &format!("tcp:{port}");
                let everywhere = *interface == Ipv4Addr::UNSPECIFIED;
                write_argument(&mut text, "interface", (!everywhere).then_some(interface));
                write_argument(&mut text, "backlog", *backlog);
                write_argument(&mut text, "reusePort", reuse_port.then_some("yes"));
            }
            Server::Unix { address, mode, backlog } => {
                text += &format!("unix:{}", quote_string_argument(&unix_text(address)));
                write_argument(&mut text, "mode", mode.map(|mode| format!("{mode:o}")));
                write_argument(&mut text, "backlog", *backlog);
            }
            Server::Systemd { domain, socket } => {
                text += "systemd";
                write_argument(&mut text, "domain", domain.map(Domain::name));
                match socket {
                    Passed::Index(index) => write_argument(&mut text, "index", Some(index)),
                    Passed::Name(name) => write_argument(&mut text, "name", Some(name)),
                }
            }
            Server::Fd(number) => text += &format!("fd:{number}"),
        }
        f.write_str(&text)
    }
}

impl fmt::Display for ClientEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let seconds = |timeout: &Option<Duration>| timeout.map(|timeout| timeout.as_secs());
        match &self.0 {
            Client::Tcp { host, port, timeout, bind } => {
                text += &format!("tcp:{}:{port}", quote_string_argument(host));
                write_argument(&mut text, "timeout", seconds(timeout));
                write_argument(&mut text, "bindAddress", *bind);
            }
            Client::Unix { path, timeout } => {
                text += &format!("unix:{}", quote_string_argument(&unix_text(path)));
                write_argument(&mut text, "timeout", seconds(timeout));
            }
        }
        f.write_str(&text)
    }
}

/// The text that the address was made of.
fn unix_text(address: &UnixAddress) -> String {
    match address {
        UnixAddress::Path(path) => path.to_string_lossy().into_owned(),
        UnixAddress::Abstract(name) => format!("@{}", String::from_utf8_lossy(name)),
        UnixAddress::Unnamed => String::new(),
    }
}

macro_rules! from_strings {
    ($($endpoint:ty),*) => {$(
        impl TryFrom<&str> for $endpoint {
            type Error = EndpointError;

            fn try_from(text: &str) -> Result<Self, EndpointError> {
                text.parse()
            }
        }

        impl TryFrom<String> for $endpoint {
            type Error = EndpointError;

            fn try_from(text: String) -> Result<Self, EndpointError> {
                text.parse()
            }
        }
    )*};
}

from_strings!(ServerEndpoint, ClientEndpoint);
