//! A point of measurement: the load under which rows are compared.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    message::{HEADER_BYTES, MESSAGE_BYTES_MAX},
    units,
};

/// Far more than any mix takes, and few enough that their sum cannot overflow.
const WEIGHT_MAX: u64 = 1_000_000;
const PARTS_MAX: usize = 64;

/// The sizes of messages: one, or several with weights, as `64:9+4KiB:1` spells them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Spelling", into = "Spelling")]
pub(crate) struct Sizes {
    /// Size and weight, by size; the weights have no common divisor. Empty where sizes are not chosen.
    parts: Vec<(usize, u64)>,
}

impl Sizes {
    /// All messages of one size, which must be one that is allowed.
    pub(crate) fn one(size: usize) -> Self {
        Self { parts: vec![(size, 1)] }
    }

    /// Of what has the size that it has, such as a GET.
    pub(crate) fn not_chosen() -> Self {
        Self { parts: Vec::new() }
    }

    /// 0 if sizes are not chosen.
    pub(crate) fn largest(&self) -> usize {
        self.parts.iter().map(|(size, _)| *size).max().unwrap_or(0)
    }

    /// The size, if there is only one.
    pub(crate) fn only(&self) -> Option<usize> {
        match self.parts.as_slice() {
            [(size, _)] => Some(*size),
            _ => None,
        }
    }

    /// One of the sizes, each as often as it weighs if the number is random; the same for the same number.
    pub(crate) fn pick(&self, random: u64) -> usize {
        let mut left = random % self.weights().max(1);
        for (size, weight) in &self.parts {
            if left < *weight {
                return *size;
            }
            left -= weight;
        }
        self.largest()
    }

    fn weights(&self) -> u64 {
        self.parts.iter().map(|(_, weight)| weight).sum()
    }

    /// For people: `4 KiB`, or the mix as it is spelled.
    pub(crate) fn told(&self) -> String {
        self.only().map_or_else(|| format!("{self} B"), |size| units::bytes(size as u64))
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('+').map(part).collect::<Result<Vec<_>, _>>()?;
        parts.sort_unstable();
        if let Some(twice) = parts.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("'{text}' names {} B twice; add up its weights", twice[0].0));
        }
        if parts.len() > PARTS_MAX {
            return Err(format!("a mix has at most {PARTS_MAX} sizes"));
        }
        let common = parts.iter().fold(0, |common, (_, weight)| greatest_common_divisor(*weight, common));
        parts.iter_mut().for_each(|(_, weight)| *weight /= common);
        Ok(Self { parts })
    }
}

/// `SIZE:WEIGHT`, or `SIZE`, which weighs 1.
fn part(text: &str) -> Result<(usize, u64), String> {
    let (size, weight) = match text.split_once(':') {
        None => (text, 1),
        Some((size, weight)) => match weight.parse() {
            Ok(weight) if (1..=WEIGHT_MAX).contains(&weight) => (size, weight),
            _ => {
                return Err(format!(
                    "'{weight}' is no weight from 1 to {WEIGHT_MAX}; write a mix as 64:9+4KiB:1"
                ));
            }
        },
    };
    Ok((within_limits(units::size(size)?)?, weight))
}

fn within_limits(size: usize) -> Result<usize, String> {
    match size {
        small if small < HEADER_BYTES => Err(format!(
            "{small} bytes do not hold the header that replies are verified by; use {HEADER_BYTES} or more"
        )),
        large if large > MESSAGE_BYTES_MAX => Err("the largest size is 64MiB".into()),
        size => Ok(size),
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(size) = self.only() {
            return size.fmt(f);
        }
        for (index, (size, weight)) in self.parts.iter().enumerate() {
            write!(f, "{}{size}:{weight}", if index > 0 { "+" } else { "" })?;
        }
        Ok(())
    }
}

/// How sizes stand in results: a number if there is only one.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Spelling {
    Only(usize),
    Mix(String),
    NotChosen,
}

impl From<Sizes> for Spelling {
    fn from(sizes: Sizes) -> Self {
        match sizes.parts.as_slice() {
            [] => Self::NotChosen,
            [(size, _)] => Self::Only(*size),
            _ => Self::Mix(sizes.to_string()),
        }
    }
}

impl TryFrom<Spelling> for Sizes {
    type Error = String;

    fn try_from(spelling: Spelling) -> Result<Self, String> {
        match spelling {
            Spelling::Only(size) => Ok(Self { parts: vec![(within_limits(size)?, 1)] }),
            Spelling::Mix(text) => text.parse(),
            Spelling::NotChosen => Ok(Self::not_chosen()),
        }
    }
}

/// A load. Rows are compared at each point of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) connections: usize,
    pub(crate) size: Sizes,
    /// Requests under way at once on each connection.
    #[serde(default = "one")]
    pub(crate) pipeline: usize,
    /// Requests a second over all connections, of an open loop; None for a closed one.
    #[serde(default)]
    pub(crate) rate: Option<u64>,
}

fn one() -> usize {
    1
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.connections == 1 { "" } else { "s" };
        write!(f, "{} connection{plural}", units::grouped(self.connections as u64))?;
        if self.size != Sizes::not_chosen() {
            write!(f, ", {} requests", self.size.told())?;
        }
        if self.pipeline > 1 {
            write!(f, ", pipeline {}", self.pipeline)?;
        }
        self.rate.map_or(Ok(()), |rate| write!(f, ", {}/s", units::grouped(rate)))
    }
}

/// What tells the points of a run apart beside the connections. Names of series hold no more than that, so that
/// they stay the same from run to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Distinction {
    size: bool,
    rate: bool,
}

impl Distinction {
    pub(crate) fn among(points: &[Point]) -> Self {
        let differ =
            |differ: fn(&Point, &Point) -> bool| points.iter().any(|point| differ(point, &points[0]));
        Self { size: differ(|a, b| a.size != b.size), rate: differ(|a, b| a.rate != b.rate) }
    }

    /// `, pipeline 16, 4096 B, 50000/s`, or what of it this point takes.
    pub(crate) fn suffix(self, point: &Point) -> String {
        self.words(point).iter().map(|word| format!(", {word}")).collect()
    }

    /// `64`, and what else tells this point apart, with no character that separates other things.
    pub(crate) fn tag(self, point: &Point, separator: char) -> String {
        let mut tag = point.connections.to_string();
        for word in self.words(point) {
            tag.push(separator);
            tag.push_str(&word.replace([' ', '/', ':'], "-"));
        }
        tag
    }

    fn words(self, point: &Point) -> Vec<String> {
        let pipeline = (point.pipeline > 1).then(|| format!("pipeline {}", point.pipeline));
        let size = self.size.then(|| format!("{} B", point.size));
        let rate = point.rate.filter(|_| self.rate).map(|rate| format!("{rate}/s"));
        [pipeline, size, rate].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(text: &str) -> Sizes {
        text.parse().expect(text)
    }

    fn point(connections: usize, size: &str) -> Point {
        Point { connections, size: sizes(size), pipeline: 1, rate: None }
    }

    #[test]
    fn sizes_have_one_spelling() {
        for (text, canonical) in [
            ("64", "64"),
            ("4KiB", "4096"),
            ("64:5", "64"),
            ("64:9+4KiB:1", "64:9+4096:1"),
            ("4096+64", "64:1+4096:1"),
            ("64:4+128:6", "64:2+128:3"),
        ] {
            assert_eq!(sizes(text).to_string(), canonical, "{text}");
            assert_eq!(sizes(canonical), sizes(text));
        }
    }

    #[test]
    fn wrong_sizes_say_what_is_right() {
        for (text, word) in [
            ("16", "24 or more"),
            ("65MiB", "64MiB"),
            ("64:0", "no weight from 1"),
            ("64:x", "64:9+4KiB:1"),
            ("64:1000001", "no weight from 1"),
            ("64:1:1", "no weight"),
            ("64+64", "twice"),
            ("64+", "not a size"),
            ("", "not a size"),
        ] {
            assert!(text.parse::<Sizes>().unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn a_mix_is_picked_by_its_weights() {
        let mix = sizes("64:9+4096:1");
        let picked: Vec<usize> = (0..1_000).map(|random| mix.pick(random)).collect();
        assert_eq!(picked.iter().filter(|size| **size == 64).count(), 900);
        assert_eq!(picked.iter().filter(|size| **size == 4096).count(), 100);
        assert_eq!((mix.largest(), mix.only()), (4096, None));
        let one = sizes("1KiB");
        assert_eq!((one.pick(u64::MAX), one.largest(), one.only()), (1024, 1024, Some(1024)));
    }

    #[test]
    fn points_survive_their_serialisation_and_older_ones_are_read() {
        let mix = Point { pipeline: 16, rate: Some(50_000), ..point(64, "64:9+4096:1") };
        let json = serde_json::to_string(&mix).expect("serialises");
        assert_eq!(json, r#"{"connections":64,"size":"64:9+4096:1","pipeline":16,"rate":50000}"#);
        assert_eq!(serde_json::from_str::<Point>(&json).expect("reads back"), mix);
        let older = r#"{"connections":64,"size":64}"#;
        assert_eq!(serde_json::from_str::<Point>(older).expect("reads"), point(64, "64"));
        assert!(serde_json::from_str::<Point>(r#"{"connections":64,"size":1}"#).is_err());
    }

    #[test]
    fn names_hold_only_what_tells_points_apart() {
        let alike = Distinction::among(&[point(64, "64"), point(128, "64")]);
        assert_eq!(
            (alike.suffix(&point(64, "64")), alike.tag(&point(64, "64"), '/')),
            (String::new(), "64".into())
        );
        let piped = Point { pipeline: 16, ..point(64, "64") };
        assert_eq!(alike.suffix(&piped), ", pipeline 16");
        let fast = Point { rate: Some(50_000), ..point(64, "64") };
        let all = Distinction::among(&[point(64, "64"), point(64, "4KiB"), fast.clone()]);
        assert_eq!(all.suffix(&Point { pipeline: 16, ..fast.clone() }), ", pipeline 16, 64 B, 50000/s");
        assert_eq!(all.tag(&Point { pipeline: 16, ..fast }, '-'), "64-pipeline-16-64-B-50000-s");
    }

    #[test]
    fn a_heading_says_everything() {
        let full = Point { pipeline: 16, rate: Some(50_000), ..point(1_000, "64") };
        assert_eq!(full.to_string(), "1,000 connections, 64 B requests, pipeline 16, 50,000/s");
        assert_eq!(point(1, "64:9+4KiB:1").to_string(), "1 connection, 64:9+4096:1 B requests");
    }
}
