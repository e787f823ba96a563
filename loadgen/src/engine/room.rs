//! Where in a connection's outgoing memory its messages lie: a ring of whole messages, each kept until
//! it is answered, because replies are compared with it.

use std::ops::Range;

/// Bytes that hold so many messages at once, whatever is being answered meanwhile.
pub(super) fn bytes_for(messages: usize, largest: usize) -> usize {
    // Messages are not cut in two at the end of the memory, which may waste one.
    if messages == 1 { largest } else { (messages + 1) * largest }
}

/// A place for the next message, behind `newest`, that leaves everything from `oldest` on as it is.
///
/// Both are the places of messages that are still needed; None if there are none.
pub(super) fn place(
    bytes: usize,
    kept: Option<(&Range<usize>, &Range<usize>)>,
    memory: usize,
) -> Option<Range<usize>> {
    let Some((oldest, newest)) = kept else {
        return (bytes <= memory).then_some(0..bytes);
    };
    let behind = newest.end..newest.end + bytes;
    if oldest.start <= newest.start {
        // The free part lies behind the newest and before the oldest.
        let in_front = 0..bytes;
        let fits =
            [(&behind, memory), (&in_front, oldest.start)].into_iter().find(|(part, end)| part.end <= *end);
        fits.map(|(part, _)| part.clone())
    } else {
        (behind.end <= oldest.start).then_some(behind)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn there_is_room_for_as_many_as_promised_whatever_their_sizes() {
        let largest = 100;
        for messages in 1..9 {
            let memory = bytes_for(messages, largest);
            let mut kept: VecDeque<Range<usize>> = VecDeque::new();
            let mut state = 7_u64;
            for turn in 0..10_000 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(turn);
                let bytes = 24 + (state >> 33) as usize % (largest - 23);
                if kept.len() == messages || state >> 62 == 0 {
                    kept.pop_front();
                }
                let ends = kept.front().zip(kept.back());
                let Some(part) = place(bytes, ends, memory) else {
                    panic!("no room for {bytes} beside {kept:?} in {memory}");
                };
                assert!(part.end <= memory && part.len() == bytes);
                let apart = |other: &Range<usize>| other.end <= part.start || part.end <= other.start;
                assert!(kept.iter().all(apart), "{part:?} in {kept:?}");
                kept.push_back(part);
                if kept.len() > messages {
                    kept.pop_front();
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_has_no_place() {
        assert_eq!(place(65, None, 64), None);
        assert_eq!(place(64, Some((&(0..64), &(0..64))), 100), None);
        assert_eq!(place(10, Some((&(50..60), &(30..45))), 100), None);
    }
}
