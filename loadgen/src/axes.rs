//! Which points a command line asks for.

use clap::Args;

use crate::{
    error::Error,
    mode::{Manner, PIPELINE_MAX},
    point::{Point, Sizes},
    units,
};

const RATE_MAX: usize = 10_000_000;
/// Bytes of a message, unless -s says it.
const SIZE: usize = 64;
/// Measuring more takes days, and nobody reads it.
const POINTS_MAX: usize = 256;

/// Connections as a list; of all else there is one.
#[derive(Debug, Args)]
pub(crate) struct PointArgs {
    /// Connections, a list [default: 64,1k, idle: 1k]
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', value_parser = units::count)]
    pub(crate) connections: Vec<usize>,
    /// Requests a second over all connections, arriving by the clock (an open loop: latency counts from the
    /// intended moment) [default: each connection asks again once it is answered]
    #[arg(short = 'R', long, value_name = "RATE", value_parser = rate)]
    pub(crate) rate: Option<u64>,
    /// Bytes of each request and reply, at least 24; or a mix of sizes with weights, such as 64:9+4KiB:1
    /// [default: 64]
    #[arg(short, long, value_name = "BYTES")]
    size: Option<Sizes>,
    /// Requests under way at once on each connection [default: 1, stream: those of 128 KiB, at least 2]
    #[arg(short, long, value_name = "N", value_parser = pipeline)]
    pipeline: Option<usize>,
}

/// Lists, of which every combination is a point.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Connections, a list [default: 1,8,64,512, or 64 if another list has several]
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', value_parser = units::count)]
    connections: Vec<usize>,
    /// Bytes of each request and reply, at least 24, a list; one may be a mix of sizes with weights, such as
    /// 64:9+4KiB:1 [default: 64]
    #[arg(short, long, value_name = "LIST", value_delimiter = ',')]
    size: Vec<Sizes>,
    /// Requests under way at once on each connection, a list [default: 1, stream: those of 128 KiB, at least 2]
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', value_parser = pipeline)]
    pipeline: Vec<usize>,
    /// Requests a second over all connections, arriving by the clock, a list (an open loop: latency counts from the
    /// intended moment) [default: each connection asks again once it is answered]
    #[arg(short = 'R', long, value_name = "LIST", value_delimiter = ',', value_parser = rate)]
    rate: Vec<u64>,
}

/// What points are made of. What was not said is empty, except connections.
#[derive(Debug)]
pub(crate) struct Axes {
    connections: Vec<usize>,
    sizes: Vec<Sizes>,
    pipelines: Vec<usize>,
    rates: Vec<u64>,
}

impl From<PointArgs> for Axes {
    fn from(args: PointArgs) -> Self {
        Self {
            connections: or(args.connections, &[64, 1_000]),
            sizes: Vec::from_iter(args.size),
            pipelines: Vec::from_iter(args.pipeline),
            rates: Vec::from_iter(args.rate),
        }
    }
}

impl From<ListArgs> for Axes {
    fn from(args: ListArgs) -> Self {
        let ListArgs { connections, size, pipeline, rate } = args;
        let others_vary = size.len() > 1 || pipeline.len() > 1 || rate.len() > 1;
        let usual: &[usize] = if others_vary { &[64] } else { &[1, 8, 64, 512] };
        Self { connections: or(connections, usual), sizes: size, pipelines: pipeline, rates: rate }
    }
}

fn or<T: Clone>(said: Vec<T>, usual: &[T]) -> Vec<T> {
    if said.is_empty() { usual.to_vec() } else { said }
}

impl Axes {
    /// Every combination, the rate varying first, connections last; each checked.
    pub(crate) fn points(self, manner: &Manner) -> Result<Vec<Point>, Error> {
        let Self { connections, sizes, pipelines, rates } = self;
        once("-c", &connections)?;
        once("-s", &sizes)?;
        once("-p", &pipelines)?;
        once("-R", &rates)?;
        if manner.http.is_some() && !sizes.is_empty() {
            return Err(Error::usage("a GET has the size that it has: leave out -s"));
        }
        let usual = if manner.http.is_some() { Sizes::not_chosen() } else { Sizes::one(SIZE) };
        let sizes = or(sizes, &[usual]);
        let rates: Vec<Option<u64>> = or(rates.into_iter().map(Some).collect(), &[None]);
        let count = [sizes.len(), pipelines.len().max(1), rates.len()].into_iter();
        let count = count.fold(connections.len(), usize::saturating_mul);
        if count > POINTS_MAX {
            return Err(Error::usage(format!(
                "the lists have {} combinations, at most {POINTS_MAX} are measured; shorten -c, -s, -p or -R",
                units::grouped(count as u64)
            )));
        }
        let mut points = Vec::new();
        for connections in connections {
            for size in &sizes {
                for pipeline in or(pipelines.clone(), &[manner.usual_pipeline(size)]) {
                    let point =
                        |rate: &Option<u64>| Point { connections, size: size.clone(), pipeline, rate: *rate };
                    points.extend(rates.iter().map(point));
                }
            }
        }
        points.iter().try_for_each(|point| manner.check(point))?;
        Ok(points)
    }
}

fn once<T: PartialEq + ToString>(option: &str, values: &[T]) -> Result<(), Error> {
    match values.iter().enumerate().find(|(at, value)| values[..*at].contains(value)) {
        Some((_, twice)) => {
            Err(Error::usage(format!("{option} names {} twice; name each value once", twice.to_string())))
        }
        None => Ok(()),
    }
}

fn pipeline(text: &str) -> Result<usize, String> {
    match units::count(text)? {
        depth if depth > PIPELINE_MAX => Err(format!("the deepest pipeline is {PIPELINE_MAX}")),
        depth => Ok(depth),
    }
}

fn rate(text: &str) -> Result<u64, String> {
    match units::count(text)? {
        rate if rate > RATE_MAX => Err("the highest rate is 10M: no client keeps a higher one".into()),
        rate => Ok(rate as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes() -> Axes {
        Axes { connections: vec![1, 8], sizes: Vec::new(), pipelines: Vec::new(), rates: Vec::new() }
    }

    fn points(axes: Axes) -> Result<Vec<String>, Error> {
        let points = axes.points(&Manner::plain())?;
        Ok(points.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_combination_is_a_point() {
        let said = Axes { sizes: vec![Sizes::one(64), Sizes::one(4096)], pipelines: vec![1, 16], ..axes() };
        let points = points(said).expect("valid");
        assert_eq!(points.len(), 8);
        assert_eq!(points[0], "1 connection, 64 B requests");
        assert_eq!(points[1], "1 connection, 64 B requests, pipeline 16");
        assert_eq!(points[2], "1 connection, 4 KiB requests");
        assert_eq!(points[7], "8 connections, 4 KiB requests, pipeline 16");
    }

    #[test]
    fn rates_are_open_loops() {
        let told = points(Axes { rates: vec![500, 1_000], ..axes() }).expect("valid");
        assert_eq!(told[1], "1 connection, 64 B requests, 1,000/s");
        let both =
            points(Axes { rates: vec![500], pipelines: vec![1, 2], ..axes() }).expect_err("a contradiction");
        assert!(both.to_string().contains("leave out -p"), "{both}");
    }

    #[test]
    fn lists_name_each_value_once_and_are_not_endless() {
        let twice = points(Axes { pipelines: vec![2, 3, 2], ..axes() }).expect_err("twice").to_string();
        assert_eq!(twice, "-p names 2 twice; name each value once");
        let sizes = || (24..=53).map(Sizes::one).collect();
        let many = Axes { sizes: sizes(), pipelines: (1..=5).collect(), ..axes() };
        assert!(points(many).expect_err("300 of them").to_string().contains("300 combinations"));
        assert_eq!(
            points(Axes { sizes: sizes(), pipelines: (1..=4).collect(), ..axes() }).map(|all| all.len()),
            Ok(240)
        );
    }
}
