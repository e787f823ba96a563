use super::*;

const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const IN_CHUNKS: &[u8] =
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
/// With everything that chunks can have.
const IN_RICH_CHUNKS: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, Chunked\r\nTrailer: X\r\n\r\n\
    0001;name=value\r\nh\r\n4  ; a=\"b;c\"\r\nello\r\n000;last\r\nX: 1\r\nY:\r\n\r\n";

/// Right responses of every kind; the first three have the same body.
const RIGHT: [&[u8]; 9] = [
    PLAIN,
    IN_CHUNKS,
    IN_RICH_CHUNKS,
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 200 \r\ncontent-length: 3, 3\r\nCONTENT-LENGTH: 3\r\n\r\n\r\n\n",
    b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 299 \xff\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
];

/// One answer to all bytes, in chunks of this size, by a reader and responses that begin with them.
fn read(bytes: &[u8], chunk_bytes: usize, verify: Verify) -> Progress {
    exchange(&mut Reader::default(), &mut Responses::default(), bytes, chunk_bytes, verify)
        .pop()
        .expect("progress")
}

fn whole(bytes: &[u8]) -> Progress {
    read(bytes, bytes.len(), Verify::Full)
}

/// All that the reader says until it finds something wrong.
fn exchange(
    reader: &mut Reader,
    shared: &mut Responses,
    bytes: &[u8],
    chunk_bytes: usize,
    verify: Verify,
) -> Vec<Progress> {
    let mut said = Vec::new();
    for mut chunk in bytes.chunks(chunk_bytes) {
        while !chunk.is_empty() {
            let progress = reader.receive(chunk, shared, verify);
            match &progress {
                Progress::Complete { used, .. } => chunk = &chunk[*used..],
                Progress::Partial => chunk = &[],
                Progress::Wrong(_) => {}
            }
            said.push(progress);
            if let Some(Progress::Wrong(_)) = said.last() {
                return said;
            }
        }
    }
    said
}

/// What two responses to the same request amount to.
fn second(first: &[u8], second: &[u8], verify: Verify) -> Progress {
    let mut shared = Responses::default();
    let progress = Reader::default().receive(first, &mut shared, verify);
    assert!(matches!(progress, Progress::Complete { .. }), "{progress:?}");
    Reader::default().receive(second, &mut shared, verify)
}

fn complete(bytes: &[u8]) -> Progress {
    Progress::Complete { used: bytes.len(), close: false }
}

fn is_complete(progress: &Progress) -> bool {
    matches!(progress, Progress::Complete { .. })
}

#[test]
fn a_response_may_come_in_any_chunks() {
    for response in RIGHT {
        for chunk_bytes in 1..=response.len() {
            let (mut reader, mut shared) = (Reader::default(), Responses::default());
            // The second time it can be known by its bytes, the third time after that.
            for _ in 0..3 {
                let mut said = exchange(&mut reader, &mut shared, response, chunk_bytes, Verify::Full);
                let used = (response.len() - 1) % chunk_bytes + 1;
                assert_eq!(said.pop(), Some(Progress::Complete { used, close: false }), "{chunk_bytes}");
                assert!(said.iter().all(|progress| *progress == Progress::Partial), "{said:?}");
                assert!(reader.at_end());
            }
        }
    }
}

#[test]
fn a_response_may_be_cut_anywhere_and_is_not_over_before_its_end() {
    for response in RIGHT {
        for cut in 1..response.len() {
            let (mut reader, mut shared) = (Reader::default(), Responses::default());
            assert_eq!(reader.receive(&[], &mut shared, Verify::Full), Progress::Partial);
            assert!(reader.at_end());
            let (before, after) = response.split_at(cut);
            assert_eq!(reader.receive(before, &mut shared, Verify::Full), Progress::Partial);
            assert!(!reader.at_end());
            assert_eq!(reader.receive(&[], &mut shared, Verify::Full), Progress::Partial);
            assert!(!reader.at_end());
            assert_eq!(reader.receive(after, &mut shared, Verify::Full), complete(after));
        }
    }
}

#[test]
fn responses_may_follow_each_other_in_one_chunk() {
    let stream = [PLAIN, PLAIN, IN_CHUNKS, PLAIN, IN_RICH_CHUNKS, IN_RICH_CHUNKS].concat();
    for chunk_bytes in 1..=stream.len() {
        let (mut reader, mut shared) = (Reader::default(), Responses::default());
        let said = exchange(&mut reader, &mut shared, &stream, chunk_bytes, Verify::Full);
        assert_eq!(
            said.iter().filter(|progress| is_complete(progress)).count(),
            6,
            "{chunk_bytes}: {said:?}"
        );
        assert!(reader.at_end());
    }
}

#[test]
fn framing_does_not_count_as_body() {
    assert_eq!(second(PLAIN, IN_RICH_CHUNKS, Verify::Full), complete(IN_RICH_CHUNKS));
    assert_eq!(second(IN_CHUNKS, PLAIN, Verify::Full), complete(PLAIN));
}

fn dated(second: u8, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nDate: 00:00:{second:02}\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

#[test]
fn the_last_response_is_known_again_by_its_bytes_and_replaced_when_its_date_changes() {
    let (mut reader, mut shared) = (Reader::default(), Responses::default());
    for date in 0..5 {
        let response = dated(date, "hello");
        assert_eq!(shared.repeated(&response), None);
        assert_eq!(reader.receive(&response, &mut shared, Verify::Full), complete(&response));
        let next = [&response[..], b"HTTP"].concat();
        assert_eq!(shared.repeated(&next), Some((response.len(), false)));
        assert_eq!(reader.receive(&next, &mut shared, Verify::Full), complete(&response));
        assert_eq!(shared.repeated(&response[..response.len() - 1]), None);
    }
    let wrong = reader.receive(&dated(6, "hullo"), &mut shared, Verify::Full);
    assert!(matches!(wrong, Progress::Wrong(HttpFinding::OtherBody { .. })), "{wrong:?}");
    assert_eq!(shared.repeated(&dated(6, "hullo")), None, "what is wrong must not be known as right");
}

#[test]
fn a_body_that_looks_like_the_last_response_is_a_body() {
    let (mut reader, mut shared) = (Reader::default(), Responses::default());
    assert!(is_complete(&reader.receive(PLAIN, &mut shared, Verify::Off)));
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", PLAIN.len() + 1);
    assert_eq!(reader.receive(head.as_bytes(), &mut shared, Verify::Off), Progress::Partial);
    assert_eq!(reader.receive(PLAIN, &mut shared, Verify::Off), Progress::Partial);
    assert_eq!(reader.receive(b"!", &mut shared, Verify::Off), complete(b"!"));
}

#[test]
fn a_repeated_response_keeps_its_close() {
    for (response, close) in [
        (&b"HTTP/1.1 200 OK\r\nConnection: Upgrade, CLOSE\r\nContent-Length: 0\r\n\r\n"[..], true),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", true),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", false),
        (b"HTTP/1.1 200 OK\r\nConnection: closed\r\nContent-Length: 0\r\n\r\n", false),
    ] {
        let expected = Progress::Complete { used: response.len(), close };
        assert_eq!(whole(response), expected);
        assert_eq!(second(response, response, Verify::Full), expected);
        assert_eq!(read(response, 1, Verify::Full), Progress::Complete { used: 1, close });
    }
}

#[test]
fn what_is_no_success_is_named_unless_nothing_is_verified() {
    for (status, reason) in [(301, "Moved"), (304, "Not Modified"), (404, "Not Found"), (502, "")] {
        let response = format!("HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\n\r\n").into_bytes();
        for verify in [Verify::Full, Verify::Header] {
            assert_eq!(read(&response, 9, verify), Progress::Wrong(HttpFinding::Status(status)));
        }
        assert_eq!(read(&response, response.len(), Verify::Off), complete(&response));
    }
    // It has no body, whatever its length says.
    let response = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(read(response, response.len(), Verify::Off), complete(response));
    let switched = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    assert_eq!(read(switched, 64, Verify::Off), Progress::Wrong(HttpFinding::Status(101)));
}

#[test]
fn the_mode_says_how_much_of_a_response_must_be_that_of_the_first() {
    let (same_length, longer) = (dated(1, "hullo"), dated(1, "hello!"));
    let accepted = b"HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\n\r\nhello";
    let first = dated(0, "hello");
    let sums = (crc32fast::hash(b"hello"), crc32fast::hash(b"hullo"));
    let other_body = Progress::Wrong(HttpFinding::OtherBody { first: sums.0, got: sums.1 });
    let other_length = Progress::Wrong(HttpFinding::OtherLength { first: 5, got: 6 });
    let other_status = Progress::Wrong(HttpFinding::OtherStatus { first: 200, got: 202 });
    assert_eq!(second(&first, &same_length, Verify::Full), other_body);
    assert_eq!(second(&first, &same_length, Verify::Header), complete(&same_length));
    for verify in [Verify::Full, Verify::Header] {
        assert_eq!(second(&first, &longer, verify), other_length);
        assert_eq!(second(&first, accepted, verify), other_status);
    }
    for other in [&same_length[..], &longer, accepted] {
        assert_eq!(second(&first, other, Verify::Off), complete(other));
    }
}

#[test]
fn a_flipped_bit_of_the_body_is_found_in_any_chunks() {
    for response in [PLAIN, IN_CHUNKS] {
        let at = response.iter().position(|byte| *byte == b'l').expect("within the body");
        let mut wrong = response.to_vec();
        wrong[at] = b'L';
        for chunk_bytes in 1..=response.len() {
            let stream = [response, &wrong].concat();
            let said = exchange(
                &mut Reader::default(),
                &mut Responses::default(),
                &stream,
                chunk_bytes,
                Verify::Full,
            );
            assert!(
                matches!(said.last(), Some(Progress::Wrong(_))),
                "{chunk_bytes}: {said:?} {}",
                wrong.escape_ascii()
            );
        }
    }
}

#[test]
fn heads_have_a_limit() {
    let head = |padding: usize| {
        let text = format!("HTTP/1.1 204 X\r\nX: {}\r\n\r\n", "x".repeat(padding));
        text.into_bytes()
    };
    let largest = head(HEAD_BYTES_MAX - head(0).len());
    let too_large = Progress::Wrong(HttpFinding::HeadTooLarge);
    for chunk_bytes in [1, 1000, 4096, HEAD_BYTES_MAX + 1] {
        assert!(is_complete(&read(&largest, chunk_bytes, Verify::Full)));
        assert_eq!(read(&head(HEAD_BYTES_MAX), chunk_bytes, Verify::Full), too_large);
    }
    let many = |fields| format!("HTTP/1.1 204 X\r\n{}\r\n", "a:\n".repeat(fields)).into_bytes();
    assert!(is_complete(&whole(&many(head::FIELDS_MAX))));
    assert_eq!(whole(&many(head::FIELDS_MAX + 1)), too_large);
}

#[test]
fn lines_and_trailers_of_chunks_have_a_limit() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let long = "x".repeat(64 << 10);
    let trailers = "X: y\r\n".repeat(16 << 10);
    for text in [format!("{head}1;{long}"), format!("{head}0\r\nX: {long}"), format!("{head}0\r\n{trailers}")]
    {
        let told = whole(text.as_bytes());
        assert!(matches!(told, Progress::Wrong(HttpFinding::MalformedChunk { .. })), "{told:?}");
    }
    // The limit is that of a line, so there may be any number of chunks.
    let chunks = "1\r\nx\r\n".repeat(64 << 10);
    assert!(is_complete(&whole(format!("{head}{chunks}0\r\n\r\n").as_bytes())));
}

#[test]
fn malformed_heads_are_told_from_other_protocols_and_from_heads_without_a_length() {
    for (fields, name) in [
        ("", "no_length"),
        ("Transfer-Encoding: gzip\r\n", "no_length"),
        ("Transfer-Encoding: chunked, gzip\r\n", "no_length"),
        ("Content-Length: 1\r\nContent-Length: 2\r\n", "malformed_head"),
        ("Content-Length: +1\r\n", "malformed_head"),
        ("Content-Length:\r\n", "malformed_head"),
        ("Content-Length: 18446744073709551616\r\n", "malformed_head"),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "malformed_head"),
        ("Content-Length : 1\r\n", "malformed_head"),
        ("no colon\r\n", "malformed_head"),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\nx");
        for chunk_bytes in [1, head.len()] {
            match read(head.as_bytes(), chunk_bytes, Verify::Full) {
                Progress::Wrong(finding) => assert_eq!(finding.name(), name, "{fields}"),
                other => panic!("{fields}: {other:?}"),
            }
        }
    }
    // An empty line before the head is what follows a body that is longer than its length.
    for other in
        [&b"SSH-2.0-x"[..], b"\0", b"\r\nHTTP/1.1 204 X\r\n\r\n", b"HTTP/2 200\r\n", b"HTTX", b"hTTP"]
    {
        for chunk_bytes in [1, other.len()] {
            let told = read(other, chunk_bytes, Verify::Full);
            assert!(matches!(told, Progress::Wrong(HttpFinding::NotHttp { .. })), "{told:?}");
        }
    }
}

#[test]
fn malformed_chunks_say_what_is_wrong() {
    for (chunks, what) in [
        ("\r\n", "has no size"),
        (";a\r\n", "has no size"),
        ("x\r\n", "has no size"),
        ("1x\r\n", "no hexadecimal number"),
        ("-1\r\n", "has no size"),
        ("00000000000000001\r\n", "16 digits"),
        ("1\nx\r\n", "no hexadecimal number"),
        ("1;a\n", "CR and LF"),
        ("1\rx", "CR and LF"),
        ("1\r\nxy\r\n", "go on"),
        ("1\r\nx\r0", "go on"),
        ("0\r\n\n", "CR and LF"),
        ("0\r\nX: y\n", "CR and LF"),
        ("0\r\nX: y\rz", "CR and LF"),
        ("0\r\n\rx", "CR and LF"),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        for chunk_bytes in [1, text.len()] {
            match read(text.as_bytes(), chunk_bytes, Verify::Full) {
                Progress::Wrong(finding) => {
                    assert!(finding.to_string().contains(what), "{chunks}: {finding}")
                }
                other => panic!("{chunks}: {other:?}"),
            }
        }
    }
}

#[test]
fn bodies_of_any_size_are_not_stored() {
    let chunk = [7; 64 << 10];
    for head in [
        "Content-Length: 18446744073709551615\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    ] {
        let (mut reader, mut shared) = (Reader::default(), Responses::default());
        let head = format!("HTTP/1.1 200 OK\r\n{head}");
        assert_eq!(reader.receive(head.as_bytes(), &mut shared, Verify::Full), Progress::Partial);
        for _ in 0..100 {
            assert_eq!(reader.receive(&chunk, &mut shared, Verify::Full), Progress::Partial);
        }
    }
    assert!(size_of::<Reader>() <= 64, "{}", size_of::<Reader>());
}

#[test]
fn long_responses_are_right_without_being_remembered() {
    let response = dated(0, &"x".repeat(64 << 10));
    let mut shared = Responses::default();
    for _ in 0..2 {
        assert_eq!(Reader::default().receive(&response, &mut shared, Verify::Full), complete(&response));
        assert_eq!(shared.repeated(&response), None);
    }
}

/// xorshift64*: the same bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
    }
}

#[test]
fn noise_is_never_taken_for_a_response() {
    let mut random = Random(1);
    for _ in 0..2_000 {
        let noise: Vec<u8> = (0..random.next() % 200 + 1).map(|_| random.next() as u8).collect();
        // Behind a start that is right it goes further into the parser.
        for start in [&b""[..], b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\nA"] {
            let said = read(&[start, &noise].concat(), random.next() % 50 + 1, Verify::Full);
            assert!(!is_complete(&said), "{said:?}: {}", noise.escape_ascii());
        }
    }
}

#[test]
fn spoiled_responses_never_panic_and_use_no_more_than_there_is() {
    let mut random = Random(2);
    let tokens: [&[u8]; 8] = [b"\r\n", b"\n", b"0\r\n", b"ffffffffffffffff", b";", b",", b" ", b"\0"];
    for _ in 0..20_000 {
        let mut spoiled = RIGHT[random.next() % RIGHT.len()].to_vec();
        for _ in 0..random.next() % 3 + 1 {
            let at = random.next() % spoiled.len();
            let token = tokens[random.next() % tokens.len()];
            let cut = (at + random.next() % 4).min(spoiled.len());
            spoiled.splice(at..cut, token.iter().copied());
        }
        let chunk_bytes = random.next() % spoiled.len() + 1;
        let shared = &mut Responses::default();
        // The helper slices by what was used, so that too much is a panic.
        exchange(&mut Reader::default(), shared, &spoiled, chunk_bytes, Verify::Off);
    }
}

#[test]
fn how_bytes_are_cut_does_not_change_what_they_mean() {
    let mut random = Random(3);
    for _ in 0..5_000 {
        let mut stream = RIGHT[..3].concat();
        let at = random.next() % stream.len();
        stream[at] = random.next() as u8;
        let outcome = |chunk_bytes| {
            let said = exchange(
                &mut Reader::default(),
                &mut Responses::default(),
                &stream,
                chunk_bytes,
                Verify::Full,
            );
            let completes = said.iter().filter(|progress| is_complete(progress)).count();
            (
                completes,
                said.into_iter().find_map(|progress| match progress {
                    Progress::Wrong(finding) => Some(finding.name()),
                    _ => None,
                }),
            )
        };
        assert_eq!(outcome(stream.len()), outcome(random.next() % 40 + 1), "{}", stream.escape_ascii());
    }
}
