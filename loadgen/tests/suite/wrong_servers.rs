//! Servers that misbehave: each ends the run with exit 5 and a line that says what happened, where.

use std::{
    io::{Read, Write},
    sync::{Barrier, Mutex},
    thread,
    time::Duration,
};

use crate::common::{Run, SIZE, answering, assert_valid, run, server};

fn against(test: &str, address: std::net::SocketAddr, more: &[&str]) -> Run {
    let target = format!("tcp://{address}");
    let mut arguments = vec!["run", &target, "-c", "2", "-d", "300ms", "--warmup", "0", "--timeout", "2s"];
    arguments.extend_from_slice(more);
    run(test, &arguments)
}

/// An echo but for one byte of one reply.
fn flipping(sequence: usize, offset: usize) -> std::net::SocketAddr {
    answering(move |request, current| {
        let mut reply = request.to_vec();
        if current == sequence {
            reply[offset] ^= 0x01;
        }
        Some(reply)
    })
}

#[test]
fn a_right_echo_passes() {
    let run = against("right", answering(|request, _| Some(request.to_vec())), &[]);
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_valid(run.document());
    assert_eq!(run.document()["complete"], true);
    assert_eq!(run.document()["cells"][0]["counts"]["connections_alive"], 2);
}

#[test]
fn a_reply_in_single_bytes_passes() {
    let address = server(|mut stream, _| {
        stream.set_nodelay(true).expect("a TCP socket");
        let mut request = [0; SIZE];
        while stream.read_exact(&mut request).is_ok() {
            for byte in request {
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
            }
        }
    });
    let run = against("single-bytes", address, &[]);
    assert_eq!(run.code, Some(0), "{run:#?}");
}

#[test]
fn a_flipped_bit_in_the_payload_is_found() {
    let run = against("flipped-payload", flipping(5, 40), &[]);
    run.assert_failed(5, &["sequence 5", "corrupted at byte 40", "expected 0x", "got 0x", "unchanged"]);
    assert!(run.failures("corrupted_reply") > 0);
}

#[test]
fn a_flipped_bit_in_the_header_is_found() {
    let run = against("flipped-header", flipping(3, 4), &[]);
    run.assert_failed(5, &["sequence 3", "corrupted at byte 4"]);
}

#[test]
fn weaker_verification_compares_less() {
    let payload = flipping(5, 40);
    assert_eq!(against("header-only", payload, &["--verify", "header"]).code, Some(0));
    let header = flipping(5, 4);
    against("header-still", header, &["--verify", "header"]).assert_failed(5, &["corrupted at byte 4"]);
    assert_eq!(against("nothing", header, &["--verify", "off"]).code, Some(0));
}

#[test]
fn what_was_not_compared_is_not_called_right() {
    let zeros = answering(|_, _| Some(vec![0; SIZE]));
    let run = against("zeros", zeros, &["--verify", "off"]);
    assert_eq!(run.code, Some(0), "{run:#?}");
    let verified = run.document()["summary"]["verified"].as_str().expect("a sentence");
    assert!(verified.contains("not compared") && !verified.contains("wrong"), "{verified}");
}

#[test]
fn a_request_that_outlasts_the_window_counts_in_its_latency() {
    let late = Duration::from_millis(800);
    let address = server(move |mut stream, number| {
        let mut request = [0; SIZE];
        while stream.read_exact(&mut request).is_ok() {
            if number == 1 {
                thread::sleep(late);
            }
            if stream.write_all(&request).is_err() {
                return;
            }
        }
    });
    let run = against("starved", address, &[]);
    assert_eq!(run.code, Some(0), "{run:#?}");
    let cell = &run.document()["cells"][0];
    assert_eq!(cell["counts"]["connections_starved"], 1);
    assert!(cell["latency"]["max_us"].as_f64().expect("a figure") >= 0.99 * late.as_micros() as f64);
    let valid = run.document()["summary"]["valid"].as_str().expect("a sentence");
    assert!(valid.contains("starved connections") && valid.contains("no latency"), "{valid}");
}

#[test]
fn two_swapped_replies_are_found() {
    let both = Barrier::new(2);
    let requests = Mutex::new([[0; SIZE]; 2]);
    let address = server(move |mut stream, number| {
        let mut request = [0; SIZE];
        let own = number % 2;
        for sequence in 0.. {
            if stream.read_exact(&mut request).is_err() {
                return;
            }
            let mut reply = request;
            if sequence == 4 {
                requests.lock().expect("no panic")[own] = request;
                both.wait();
                reply = requests.lock().expect("no panic")[1 - own];
            }
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
    });
    let run = against("swapped", address, &[]);
    run.assert_failed(5, &["sequence 4: got the reply of connection", "mixes up its connections"]);
    assert!(run.failures("foreign_reply") > 0);
}

#[test]
fn a_repeated_reply_is_found() {
    let address = answering(|request, sequence| {
        let mut reply = request.to_vec();
        if sequence == 6 {
            reply.extend_from_slice(request);
        }
        Some(reply)
    });
    let run = against("repeated", address, &[]);
    run.assert_failed(5, &["sequence 7: got the reply of sequence 6 once more"]);
    assert!(run.failures("repeated_reply") > 0);
}

#[test]
fn a_dropped_reply_is_found() {
    let address =
        answering(|request, sequence| Some(if sequence == 3 { Vec::new() } else { request.to_vec() }));
    let run = against("dropped", address, &["--timeout", "300ms"]);
    run.assert_failed(5, &["sequence 3: no reply within 300ms", "after 3 whole replies", "--timeout"]);
    assert!(run.failures("no_reply") > 0);
}

#[test]
fn a_server_that_never_answers_is_found() {
    let run = against("silent", answering(|_, _| Some(Vec::new())), &["--timeout", "300ms"]);
    run.assert_failed(5, &["sequence 0: no reply within 300ms", "0 of 64 bytes", "after 0 whole replies"]);
}

#[test]
fn a_reply_cut_short_is_found() {
    let address =
        answering(|request, sequence| Some(request[..if sequence == 2 { 10 } else { SIZE }].to_vec()));
    let run = against("cut-short", address, &["--timeout", "300ms"]);
    run.assert_failed(5, &["sequence 2: no reply within 300ms", "10 of 64 bytes had come"]);
}

#[test]
fn a_lost_byte_is_found() {
    let address = answering(|request, sequence| {
        let lost = usize::from(sequence == 2);
        Some([&request[..30], &request[30 + lost..]].concat())
    });
    against("lost-byte", address, &["--timeout", "300ms"])
        .assert_failed(5, &["sequence 2", "corrupted at byte 30"]);
}

#[test]
fn an_early_close_is_found() {
    let run = against("closed", answering(|request, sequence| (sequence < 5).then(|| request.to_vec())), &[]);
    run.assert_failed(5, &["sequence 5: the server closed the connection early", "after 5 whole replies"]);
    assert!(run.failures("closed_early") > 0);
}

#[test]
fn a_close_before_anything_is_found() {
    let run = against("refusing", server(|stream, _| drop(stream)), &[]);
    assert_eq!(run.code, Some(5), "{run:#?}");
    assert!(run.complaint().contains("connection"), "{run:#?}");
}

#[test]
fn a_reset_is_found() {
    // Closing with unread input sends a reset.
    let address = server(|mut stream, _| {
        let mut part = [0; SIZE / 2];
        let _ = stream.read_exact(&mut part);
    });
    let run = against("reset", address, &[]);
    run.assert_failed(5, &["sequence 0: receive failed", "reset by peer", "dropped the connection"]);
    assert!(run.failures("ECONNRESET") > 0);
}

#[test]
fn a_greeting_that_nobody_asked_for_is_found() {
    let address = server(|mut stream, _| {
        let _ = stream.write_all(b"220 welcome\r\n");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    });
    let run = against("greeting", address, &["--timeout", "300ms"]);
    assert_eq!(run.code, Some(5), "{run:#?}");
    let line = run.complaint();
    assert!(line.contains("answer no request") || line.contains("corrupted at byte 0"), "{line}");
}
