//! Where a body ends: after so many bytes, or with its last chunk.

use super::HttpFinding;

/// The most bytes in one line that frames chunks, and in all trailers.
const LINES_BYTES_MAX: u32 = 64 << 10;

/// Hexadecimal digits of the largest size.
const DIGITS_MAX: u8 = 16;

/// What is still to come of a body.
#[derive(Debug)]
pub(super) enum Body {
    Sized { left: u64 },
    Chunked(Chunks),
}

impl Body {
    pub(super) const fn of_length(left: u64) -> Self {
        Self::Sized { left }
    }

    pub(super) const fn in_chunks() -> Self {
        Self::Chunked(Chunks { place: Place::Size { digits: 0 }, left: 0, line: 0 })
    }

    /// Takes the bytes that belong to the body, hands its data on, and says how many bytes these were.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        mut data: impl FnMut(&[u8]),
    ) -> Result<usize, HttpFinding> {
        match self {
            Self::Sized { left } => Ok(take_data(left, bytes, &mut data)),
            Self::Chunked(chunks) => chunks.receive(bytes, &mut data),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Sized { left } => *left == 0,
            Self::Chunked(chunks) => chunks.place == Place::Over,
        }
    }
}

fn take_data(left: &mut u64, bytes: &[u8], data: &mut impl FnMut(&[u8])) -> usize {
    let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
    data(&bytes[..taken]);
    *left -= taken as u64;
    taken
}

/// The chunked coding of RFC 9112, 7.1, read byte by byte but for the data.
#[derive(Debug)]
pub(super) struct Chunks {
    place: Place,
    /// The size of the chunk, then what is still to come of its data.
    left: u64,
    /// Bytes of framing since a size was read: of one line, or of all trailers.
    line: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Size {
        digits: u8,
    },
    Extension,
    /// The line feed behind a size or an extension.
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    /// The beginning of a trailer, or of the last line.
    Trailers,
    Trailer,
    TrailerEnd,
    LastEnd,
    Over,
}

impl Chunks {
    fn receive(&mut self, bytes: &[u8], data: &mut impl FnMut(&[u8])) -> Result<usize, HttpFinding> {
        let mut used = 0;
        while used < bytes.len() && self.place != Place::Over {
            if self.place == Place::Data {
                used += take_data(&mut self.left, &bytes[used..], data);
                if self.left == 0 {
                    self.place = Place::DataReturn;
                }
            } else {
                self.place = self.frame(bytes[used])?;
                used += 1;
            }
        }
        Ok(used)
    }

    /// Takes a byte that is no data.
    fn frame(&mut self, byte: u8) -> Result<Place, HttpFinding> {
        self.line += 1;
        if self.line > LINES_BYTES_MAX {
            return Err(malformed("a line or the trailers are longer than 64 KiB"));
        }
        match (self.place, byte) {
            (Place::Size { digits }, _) => self.size(digits, byte),
            (Place::Extension, b'\r') => Ok(Place::SizeEnd),
            (Place::Extension, byte) if byte != b'\n' => Ok(Place::Extension),
            (Place::SizeEnd, b'\n') => Ok(self.sized()),
            (Place::DataReturn, b'\r') => Ok(Place::DataEnd),
            (Place::DataEnd, b'\n') => Ok(Place::Size { digits: 0 }),
            (Place::Trailers, b'\r') => Ok(Place::LastEnd),
            (Place::Trailer, b'\r') => Ok(Place::TrailerEnd),
            (Place::Trailers | Place::Trailer, byte) if byte != b'\n' => Ok(Place::Trailer),
            (Place::TrailerEnd, b'\n') => Ok(Place::Trailers),
            (Place::LastEnd, b'\n') => Ok(Place::Over),
            (Place::DataReturn | Place::DataEnd, _) => Err(malformed("data go on where the chunk ends")),
            _ => Err(malformed("a line does not end with CR and LF")),
        }
    }

    fn size(&mut self, digits: u8, byte: u8) -> Result<Place, HttpFinding> {
        match (char::from(byte).to_digit(16), byte) {
            (Some(_), _) if digits == DIGITS_MAX => Err(malformed("a size has more than 16 digits")),
            (Some(digit), _) => {
                self.left = self.left << 4 | u64::from(digit);
                Ok(Place::Size { digits: digits + 1 })
            }
            _ if digits == 0 => Err(malformed("a chunk has no size")),
            (None, b'\r') => Ok(Place::SizeEnd),
            // Blanks may stand before an extension, and some servers pad sizes with them.
            (None, b';' | b' ' | b'\t') => Ok(Place::Extension),
            _ => Err(malformed("a size is no hexadecimal number")),
        }
    }

    /// The line with the size is over: no data, and no more chunks, follow a size of 0.
    fn sized(&mut self) -> Place {
        self.line = 0;
        if self.left == 0 { Place::Trailers } else { Place::Data }
    }
}

fn malformed(what: &'static str) -> HttpFinding {
    HttpFinding::MalformedChunk { what }
}
