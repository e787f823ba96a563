//! Histograms in results: the V2 encoding of HdrHistogram, deflated, in base64.

use std::io::Read as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::read::ZlibDecoder;
use hdrhistogram::{
    Histogram,
    serialization::{Serializer as _, V2DeflateSerializer},
};
use serde::{Deserialize, Deserializer, Serializer, de, ser};

/// Cookie and length of what follows, before the deflated part.
const WRAPPER_BYTES: usize = 8;
/// Of the V2 encoding, up to the counts; its length of the counts stands here.
const HEADER_BYTES: usize = 40;
const LENGTH_AT: std::ops::Range<usize> = 4..8;
/// What loadgen writes takes some 100 KiB at most.
const BYTES_MAX: u64 = 4 << 20;
/// More values than anything counts, and few enough that sums of many cannot overflow.
const VALUES_MAX: u64 = 1 << 53;

pub(crate) fn serialize<S: Serializer>(
    histogram: &Option<Histogram<u64>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let Some(histogram) = histogram else { return serializer.serialize_none() };
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut bytes).map_err(ser::Error::custom)?;
    serializer.serialize_str(&STANDARD.encode(bytes))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Histogram<u64>>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| decode(&text).map_err(|error| de::Error::custom(format!("a histogram {error}"))))
        .transpose()
}

/// One that is always there.
pub(crate) mod whole {
    use hdrhistogram::Histogram;
    use serde::{Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(
        histogram: &Histogram<u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        super::serialize(&Some(histogram.clone()), serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Histogram<u64>, D::Error> {
        super::deserialize(deserializer)?.ok_or_else(|| D::Error::custom("no histogram"))
    }
}

/// All of them added; None if there are none.
pub(crate) fn sum<'a>(histograms: impl Iterator<Item = &'a Histogram<u64>>) -> Option<Histogram<u64>> {
    let mut sum: Option<Histogram<u64>> = None;
    for histogram in histograms {
        match &mut sum {
            // All histograms of a run have the same bounds, so none of the values is out of range.
            Some(sum) => sum.add(histogram).ok()?,
            None => sum = Some(histogram.clone()),
        }
    }
    sum
}

/// Anybody can write a result, so what the library would trust is checked before.
fn decode(text: &str) -> Result<Histogram<u64>, String> {
    let deflated = STANDARD.decode(text).map_err(|error| format!("is no base64: {error}"))?;
    let deflated = deflated.get(WRAPPER_BYTES..).ok_or("is too short")?;
    let mut bytes = Vec::new();
    let inflated = ZlibDecoder::new(deflated).take(BYTES_MAX + 1).read_to_end(&mut bytes);
    inflated.map_err(|error| format!("cannot be inflated: {error}"))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err("is larger than loadgen writes any".into());
    }
    let length = bytes.get(LENGTH_AT).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    if length.is_none_or(|length| length as usize > bytes.len().saturating_sub(HEADER_BYTES)) {
        return Err("is cut short".into());
    }
    // A run of as many zeros as no number holds, which the library would negate.
    if bytes.windows(9).any(|window| window == [0xff; 9]) {
        return Err("holds what is no count".into());
    }
    let histogram: Histogram<u64> = hdrhistogram::serialization::Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(|error| format!("cannot be decoded: {error}"))?;
    if histogram.len() > VALUES_MAX {
        return Err("counts more values than there can be".into());
    }
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::ZlibEncoder};
    use serde::Serialize;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Holder {
        #[serde(default, with = "super")]
        histogram: Option<Histogram<u64>>,
    }

    fn histogram() -> Histogram<u64> {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds");
        (1..=1_000).for_each(|value| histogram.record(value * 1_000).expect("in range"));
        histogram
    }

    fn encoded(histogram: &Histogram<u64>) -> Vec<u8> {
        let mut bytes = Vec::new();
        hdrhistogram::serialization::V2Serializer::new().serialize(histogram, &mut bytes).expect("encodes");
        bytes
    }

    fn wrapped(bytes: &[u8]) -> String {
        let mut encoder = ZlibEncoder::new(vec![0x1c, 0x84, 0x93, 0x14, 0, 0, 0, 0], Compression::fast());
        encoder.write_all(bytes).expect("memory");
        STANDARD.encode(encoder.finish().expect("memory"))
    }

    #[test]
    fn histograms_survive_their_serialisation() {
        let json = serde_json::to_string(&Holder { histogram: Some(histogram()) }).expect("serialises");
        let back: Holder = serde_json::from_str(&json).expect("reads back");
        assert_eq!(back.histogram, Some(histogram()));
        for none in [r#"{"histogram":null}"#, "{}"] {
            assert!(serde_json::from_str::<Holder>(none).expect("reads").histogram.is_none());
        }
    }

    #[test]
    fn what_is_no_histogram_is_refused() {
        let whole = encoded(&histogram());
        assert!(decode(&wrapped(&whole)).is_ok());
        let mut many = histogram();
        many.record_n(1_000, VALUES_MAX).expect("in range");
        let changed = |at: usize, bytes: &[u8]| {
            let mut changed = whole.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            wrapped(&changed)
        };
        for (text, word) in [
            ("###".into(), "base64"),
            (STANDARD.encode([1, 2, 3]), "too short"),
            (STANDARD.encode([0; 40]), "inflated"),
            (wrapped(&vec![0; BYTES_MAX as usize + 1]), "larger"),
            (wrapped(&whole[..whole.len() - 1]), "cut short"),
            (changed(4, &[0xff, 0xff, 0xff, 0xff]), "cut short"),
            (changed(0, &[9, 9, 9, 9]), "decoded"),
            (changed(8, &[9, 9, 9, 9]), "decoded"),
            (changed(50, &[0xff; 9]), "no count"),
            (wrapped(&encoded(&many)), "more values"),
        ] {
            let error = decode(&text).expect_err(word);
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn no_changed_byte_makes_it_panic() {
        let whole = encoded(&histogram());
        for at in (0..HEADER_BYTES).chain((HEADER_BYTES..whole.len()).step_by(61)) {
            for to in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] = to;
                if let Ok(histogram) = decode(&wrapped(&changed)) {
                    let _ = (histogram.mean(), histogram.value_at_quantile(0.99), histogram.max());
                }
            }
        }
    }
}
