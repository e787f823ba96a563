//! Protocols that receive strings behind their length, and netstrings, over real sockets (H2). How strings are cut out of bytes is
//! tested beside the receivers, in pieces of every length.

use ringspun::{
    Cx, Protocol, Reason,
    protocols::{IntNStringReceiver, IntPrefix, NetstringError, NetstringReceiver, StringBuffer},
};

use crate::{
    kinds::serve,
    kit::{Event, Journal, Server},
    peers::End,
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    h2_strings_come_back_as_they_went,
    h2_a_string_too_long_ends_that_connection_only,
    h2_who_hears_of_a_string_too_long_may_say_how_it_ends,
    h2_what_is_no_netstring_ends_that_connection_only,
);

/// Echoes strings behind a length of `N` bytes, and tells how its connections end.
struct Strings<const N: usize>(StringBuffer, Journal);

impl<const N: usize> Strings<N> {
    fn new(journal: Journal) -> Self {
        Self(StringBuffer::default(), journal)
    }
}

impl<F, const N: usize> Protocol<F> for Strings<N> {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        self.receive_strings(cx, data);
    }

    fn connection_lost(&mut self, _cx: &mut Cx<'_, F>, reason: &Reason) {
        self.1.note(format!("{reason:?}"));
    }
}

impl<F, const N: usize> IntNStringReceiver<F> for Strings<N> {
    const PREFIX: IntPrefix = match N {
        1 => IntPrefix::Int8,
        2 => IntPrefix::Int16,
        _ => IntPrefix::Int32,
    };
    const MAX_LENGTH: usize = 250;

    fn string_buffer(&mut self) -> &mut StringBuffer {
        &mut self.0
    }

    fn string_received(&mut self, cx: &mut Cx<'_, F>, string: &[u8]) {
        let too_long = [string, &[0; 251]].concat();
        assert!(
            self.send_string(cx, &too_long).is_err_and(|error| error.to_string().contains("at most 250"))
        );
        let _ = self.send_string(cx, string).expect("as long as what came");
    }
}

/// Takes strings of up to 10 bytes, and ends with an error of its own if there is more to come.
struct Strict(StringBuffer, Journal);

impl<F> Protocol<F> for Strict {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        self.receive_strings(cx, data);
    }

    fn connection_lost(&mut self, _cx: &mut Cx<'_, F>, reason: &Reason) {
        self.1.note(format!("{reason:?}"));
    }
}

impl<F> IntNStringReceiver<F> for Strict {
    const PREFIX: IntPrefix = IntPrefix::Int16;
    const MAX_LENGTH: usize = 10;

    fn string_buffer(&mut self) -> &mut StringBuffer {
        &mut self.0
    }

    fn string_received(&mut self, _cx: &mut Cx<'_, F>, string: &[u8]) {
        self.1.note(String::from_utf8_lossy(string));
    }

    fn length_limit_exceeded(&mut self, cx: &mut Cx<'_, F>, length: usize) {
        cx.transport.fail(format!("{length} bytes are too many"));
    }
}

/// Echoes netstrings, and tells what was none.
struct Netstrings(StringBuffer, Journal);

impl Netstrings {
    fn new(journal: Journal) -> Self {
        Self(StringBuffer::default(), journal)
    }
}

impl<F> Protocol<F> for Netstrings {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        self.receive_strings(cx, data);
    }

    fn connection_lost(&mut self, _cx: &mut Cx<'_, F>, reason: &Reason) {
        self.1.note(format!("{reason:?}"));
    }
}

impl<F> NetstringReceiver<F> for Netstrings {
    fn string_buffer(&mut self) -> &mut StringBuffer {
        &mut self.0
    }

    fn string_received(&mut self, cx: &mut Cx<'_, F>, string: &[u8]) {
        let _ = self.send_string(cx, string).expect("as long as what came");
    }
}

/// Each string behind its length, as `N` bytes.
fn prefixed<const N: usize>(strings: &[Vec<u8>]) -> Vec<u8> {
    let said = |string: &Vec<u8>| [&(string.len() as u32).to_be_bytes()[4 - N..], string].concat();
    strings.iter().flat_map(said).collect()
}

fn h2_strings_come_back_as_they_went(setup: &Setup) {
    let strings = [b"first".to_vec(), Vec::new(), vec![b','; 250], b"5:a,".to_vec()];
    let netstrings = strings.iter().flat_map(|s| [format!("{}:", s.len()).as_bytes(), s, b","].concat());
    let servers = [
        (serve(setup, Strings::<1>::new), prefixed::<1>(&strings)),
        (serve(setup, Strings::<2>::new), prefixed::<2>(&strings)),
        (serve(setup, Strings::<4>::new), prefixed::<4>(&strings)),
        (serve(setup, Netstrings::new), netstrings.collect()),
    ];
    for (served, said) in servers {
        for piece in (1..=9).chain([said.len()]) {
            let mut peer = served.dial();
            said.chunks(piece).for_each(|bytes| peer.write(bytes));
            assert_eq!(peer.read_exactly(said.len()), said, "{piece}");
        }
    }
}

/// Says so on one connection, which ends as it should, while another one is served.
fn expect_end(served: &Server, good: &[u8], bad: &[u8], end: End, reason: &str) {
    let (mut other, mut peer) = (served.dial(), served.dial());
    let before = served.journal.all().len();
    peer.ask(good, good);
    peer.write(bad);
    // What an RST overtakes is lost.
    assert_eq!(peer.read_to_end(), (Vec::new(), end), "{bad:?}");
    drop(peer);
    served.journal.wait("the end", |events| events.len() > before);
    assert_eq!(served.journal.all()[before..], [Event::Note(reason.to_owned())], "{bad:?}");
    other.ask(good, good);
    other.finish_writing();
    other.expect_fin();
    served.journal.wait("the other's end", |events| events.len() > before + 1);
}

fn h2_a_string_too_long_ends_that_connection_only(setup: &Setup) {
    let served = serve(setup, Strings::<1>::new);
    expect_end(&served, b"\x02ok", b"\xfb", End::Fin, "Done");
    expect_end(&served, b"\x02ok", &[&b"\xff"[..], &[b'x'; 255]].concat(), End::Fin, "Done");
    let served = serve(setup, Strings::<2>::new);
    expect_end(&served, b"\0\x02ok", b"\0\xfb", End::Fin, "Done");
    let served = serve(setup, Strings::<4>::new);
    expect_end(&served, b"\0\0\0\x02ok", b"\0\0\0\xfb", End::Fin, "Done");
    expect_end(&served, b"\0\0\0\x02ok", b"\xff\xff\xff\xff\0\0\0\x02no", End::Fin, "Done");
}

fn h2_who_hears_of_a_string_too_long_may_say_how_it_ends(setup: &Setup) {
    let served = serve(setup, |journal| Strict(StringBuffer::default(), journal));
    let mut peer = served.dial();
    peer.write(b"\0\x0aat most 10\0\x02ok\x01\x01");
    peer.expect_reset();
    let reason = format!("{:?}", Reason::Callback("257 bytes are too many".into()));
    served.journal.wait_note(&reason);
    let told: Vec<_> = ["at most 10", "ok", &reason].map(|text| Event::Note(text.to_owned())).into();
    assert_eq!(served.journal.all(), told);
}

fn h2_what_is_no_netstring_ends_that_connection_only(setup: &Setup) {
    let served = serve(setup, Netstrings::new);
    for (bad, error) in [
        (&b"02:no,"[..], NetstringError::Length),
        (b"5hello,", NetstringError::Length),
        (b"-1:,", NetstringError::Length),
        (b"2:noo", NetstringError::Comma),
        (b"0:;", NetstringError::Comma),
        (b"100000:", NetstringError::TooLong { length: 100_000 }),
    ] {
        let reason = format!("{:?}", Reason::Callback(Box::new(error)));
        expect_end(&served, b"2:ok,", bad, End::Reset, &reason);
    }
}
