//! The import law: which room of `src/` may name which, where `unsafe` may stand, and how long
//! functions and files may grow.
//!
//! The files are lexed, not compiled: comments and texts do not count, code that is compiled out does.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A room, the files in it (a folder stands for all it holds), and the rooms it may name beside itself.
struct Room {
    name: &'static str,
    files: &'static [&'static str],
    may_name: &'static [&'static str],
}

const fn room(name: &'static str, files: &'static [&'static str], may_name: &'static [&'static str]) -> Room {
    Room { name, files, may_name }
}

/// The law, from the bottom up. No arrow runs upward, and no backend names another one, a protocol,
/// a factory or a host.
const ROOMS: &[Room] = &[
    room("words", &["error", "reason", "limits", "id", "address", "endpoint", "stats", "options"], &[]),
    room("pure", &["output", "timer", "connection"], &["words"]),
    room(
        "kernel",
        &["sys", "signals", "crew", "thread_pool", "clock", "network", "schedule"],
        &["words", "pure"],
    ),
    room("user side", USER_SIDE, &["words", "pure", "kernel"]),
    room(
        "seam",
        &["backend", "backend/accept", "backend/diagnosis", "backend/watching"],
        &["words", "pure", "kernel"],
    ),
    room("io_uring", &["backend/uring"], &["words", "pure", "kernel", "seam"]),
    room("epoll", &["backend/epoll"], &["words", "pure", "kernel", "seam"]),
    room("memory", &["backend/memory"], &["words", "pure", "kernel", "seam"]),
    room("treadmill", &["backend/treadmill"], &["words", "pure", "kernel", "seam"]),
    room("threads", &["backend/threads"], &["words", "pure", "kernel", "seam"]),
    room("joint", JOINT, JOINT_NAMES),
    room(
        "front door",
        &["lib", "testing"],
        &["words", "pure", "kernel", "user side", "seam", "memory", "joint"],
    ),
];

const JOINT_NAMES: &[&str] =
    &["words", "pure", "kernel", "user side", "seam", "io_uring", "epoll", "treadmill", "threads"];

const USER_SIDE: &[&str] = &[
    "connector",
    "datagram",
    "datagram_options",
    "delayed_call",
    "descriptor",
    "factory",
    "factory_handle",
    "policies",
    "port",
    "producer",
    "protocol",
    "protocols",
    "reactor",
    "reconnector",
    "system_event",
    "transport",
    "unix_options",
    "wrapper",
];

const JOINT: &[&str] = &[
    "builder",
    "call_in_thread",
    "datagram_host",
    "driver",
    "event_loop",
    "host",
    "resolve",
    "run",
    "table",
    "threaded",
    "watches",
];

/// The only files with `unsafe` in them.
const UNSAFE_FILES: &[&str] = &[
    "sys/activation",
    "sys/datagram",
    "sys/listener",
    "sys/rights",
    "sys/send_queue",
    "sys/watched_file",
    "signals",
    "backend/uring",
    "backend/uring/accepting",
    "backend/uring/buffers",
    "backend/uring/datagrams",
    "backend/uring/receiving",
    "backend/uring/rights",
    "backend/uring/ring",
    "backend/uring/sending",
    "backend/uring/watching",
];

/// What the pure rooms do not name, outside of their tests: they are handed the time and do no I/O.
const IMPURE: &[&str] =
    &["SystemTime", "net", "fs", "fd", "spawn", "sleep", "Mutex", "env", "process", "nix"];

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 700;

/// One file of `src/`: `backend/uring/ring` for `src/backend/uring/ring.rs`.
struct Source {
    file: String,
    lines: usize,
    tokens: TokenStream,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Breach {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}.rs:{}: {}", self.file, self.line, self.what)
    }
}

#[test]
fn arrows_run_only_downwards() {
    let sources = sources();
    judge(&sources, |source| arrows(source, &files(&sources)));
}

#[test]
fn unsafe_stands_only_in_its_rooms() {
    judge(&sources(), |source| {
        let found = idents(&source.tokens, &|word, _| word == "unsafe");
        match (UNSAFE_FILES.contains(&source.file.as_str()), found.is_empty()) {
            (true, true) => vec![(1, "may have `unsafe` but has none: take it off the list".to_owned())],
            (true, false) => Vec::new(),
            (false, _) => found,
        }
    });
}

#[test]
fn the_pure_rooms_are_pure() {
    judge(&sources(), |source| {
        if room_of(&source.file).name != "pure"
            || source.file.ends_with("/tests")
            || source.file.contains("/tests/")
        {
            return Vec::new();
        }
        let code = without_tests(&source.tokens);
        let mut found = idents(&code, &|word, _| IMPURE.contains(&word));
        found.extend(idents(&code, &reads_the_clock));
        found.into_iter().map(|(line, word)| (line, format!("`{word}` in a pure room"))).collect()
    });
}

#[test]
fn functions_and_files_stay_short() {
    judge(&sources(), |source| {
        let mut long = long_functions(&source.tokens);
        if source.lines > FILE_LINES_MAX {
            long.push((source.lines, format!("the file has more than {FILE_LINES_MAX} lines")));
        }
        long
    });
}

#[test]
fn every_file_has_a_room_and_every_room_its_files() {
    let files = files(&sources());
    for file in &files {
        room_of(file);
    }
    for file in ROOMS.iter().flat_map(|room| room.files) {
        assert!(files.contains(*file), "src/{file}.rs is in the table, but not in src/");
    }
}

/// The law itself is tried on code that breaks it.
#[test]
fn breaches_are_found() {
    let files = files(&sources());
    let names = |file: &str, code: &str| {
        let source = Source { file: file.to_owned(), lines: 1, tokens: code.parse().unwrap() };
        arrows(&source, &files).into_iter().map(|(_, what)| what).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(names("backend/epoll", "use crate::{error::Errno, protocol::Protocol};"), "names protocol");
    assert_eq!(names("backend/epoll", "use super::uring::ring::Ring;"), "names backend/uring/ring");
    assert_eq!(names("backend/epoll", "use {std::io, crate::{host::*}};"), "names host");
    assert_eq!(names("backend/uring/ring", "fn f() { super::super::epoll::open() }"), "names backend/epoll");
    assert_eq!(names("backend/uring", "log!(\"{}\", crate::factory::Serve);"), "names factory");
    assert_eq!(names("output", "mod tests { use super::*; use crate::sys::Socket; }"), "names sys");
    assert_eq!(names("output", "use crate::Limits;"), "names lib");
    assert_eq!(names("output", "mod a { use super::super::table; }"), "names table");
    assert_eq!(names("output", "/// crate::reactor\nfn f() { \"crate::reactor\"; }"), "");
    assert_eq!(names("run", "use crate::{sys, backend::{self, uring::open}}; use self::x::y;"), "");
    let long = format!("impl X {{ fn f() {{ {} }} fn g(); }}", "\n".repeat(FUNCTION_LINES_MAX));
    assert_eq!(long_functions(&long.parse().unwrap()).len(), 1);
    let tested: TokenStream = "#[cfg(test)] mod tests { fn f() { now() } } fn g() { now() }".parse().unwrap();
    assert_eq!(idents(&without_tests(&tested), &reads_the_clock).len(), 1);
}

/// Fails with all that `find` finds in any file, as line and text.
fn judge(sources: &[Source], find: impl Fn(&Source) -> Vec<(usize, String)>) {
    let mut breaches = Vec::new();
    for source in sources {
        let found = find(source).into_iter();
        breaches.extend(found.map(|(line, what)| Breach { file: source.file.clone(), line, what }));
    }
    breaches.sort();
    let list: String = breaches.iter().map(|breach| format!("\n  {breach}")).collect();
    assert!(breaches.is_empty(), "the law is broken:{list}");
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    assert!(paths.len() > 20, "src/ is not where it is expected: {paths:?}");
    paths.iter().map(|path| read(&root, path)).collect()
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn read(root: &Path, path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let file = path.strip_prefix(root).unwrap().with_extension("").to_str().unwrap().to_owned();
    let tokens = text.parse().unwrap_or_else(|error| panic!("{file} cannot be lexed: {error}"));
    Source { file, lines: text.lines().count(), tokens }
}

fn files(sources: &[Source]) -> BTreeSet<String> {
    sources.iter().map(|source| source.file.clone()).collect()
}

/// The room whose table entry is the file or the nearest folder above it.
fn room_of(file: &str) -> &'static Room {
    let named = |path: &Path| ROOMS.iter().find(|room| room.files.iter().any(|f| Path::new(f) == path));
    // The seam lies in the folder `backend`, but what lies beside it there is not the seam.
    let mut folders =
        Path::new(file).ancestors().filter(|path| *path == Path::new(file) || *path != Path::new("backend"));
    folders
        .find_map(named)
        .unwrap_or_else(|| panic!("src/{file}.rs has no room; give it one in tests/import_law.rs"))
}

/// What a file names and may not.
fn arrows(source: &Source, files: &BTreeSet<String>) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    let module: Vec<String> = match source.file.as_str() {
        "lib" => Vec::new(),
        file => file.split('/').map(str::to_owned).collect(),
    };
    find_paths(&source.tokens, &module, &mut named);
    let from = room_of(&source.file);
    let mut breaches = Vec::new();
    for (line, path) in named {
        let target = file_of(&path, files);
        let to = room_of(&target);
        if to.name != from.name && !from.may_name.contains(&to.name) {
            breaches.push((line, format!("names {target}")));
        }
    }
    breaches
}

/// The file that a path from the crate's root leads into.
fn file_of(path: &[String], files: &BTreeSet<String>) -> String {
    let prefixes = (1..=path.len()).rev().map(|n| path[..n].join("/"));
    prefixes.into_iter().find(|file| files.contains(file)).unwrap_or_else(|| "lib".to_owned())
}

/// Finds all paths that begin with `crate`, `super` or `self`, in code and in macros alike.
fn find_paths(tokens: &TokenStream, module: &[String], into: &mut Vec<(usize, Vec<String>)>) {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(word) if *word == "mod" => {
                if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) =
                    (tokens.get(at + 1), tokens.get(at + 2))
                {
                    let inner = [module, &[name.to_string()]].concat();
                    find_paths(&body.stream(), &inner, into);
                    at += 2;
                }
            }
            TokenTree::Ident(word) if starts_path(&tokens, at) => {
                let start = match word.to_string().as_str() {
                    "crate" => Vec::new(),
                    "self" => module.to_vec(),
                    _ => module[..module.len().saturating_sub(1)].to_vec(),
                };
                follow(&tokens[at + 1..], start, word.span().start().line, into);
            }
            TokenTree::Group(group) => find_paths(&group.stream(), module, into),
            _ => {}
        }
        at += 1;
    }
}

/// Whether a path begins here: `crate::`, `super::` or `self::` that is not itself the middle of one.
fn starts_path(tokens: &[TokenTree], at: usize) -> bool {
    let TokenTree::Ident(word) = &tokens[at] else { return false };
    let begins = ["crate", "super", "self"].iter().any(|start| word == start);
    begins && is_colons(&tokens[at + 1..]) && !(at >= 2 && is_colons(&tokens[at - 2..]))
}

fn is_colons(tokens: &[TokenTree]) -> bool {
    let colon = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == ':');
    colon(tokens.first()) && colon(tokens.get(1))
}

/// Follows `::a::b` or `::{a, b::c}` to its ends.
fn follow(tokens: &[TokenTree], mut path: Vec<String>, line: usize, into: &mut Vec<(usize, Vec<String>)>) {
    if is_colons(tokens) {
        match tokens.get(2) {
            Some(TokenTree::Ident(word)) if *word == "super" => {
                path.pop();
                return follow(&tokens[3..], path, line, into);
            }
            Some(TokenTree::Ident(word)) => {
                path.push(word.to_string());
                return follow(&tokens[3..], path, word.span().start().line, into);
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                return follow_group(group, &path, into);
            }
            _ => {}
        }
    }
    into.push((line, path));
}

fn follow_group(group: &Group, path: &[String], into: &mut Vec<(usize, Vec<String>)>) {
    let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
    for item in tokens.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ',')) {
        if let Some(TokenTree::Ident(word)) = item.first() {
            let line = word.span().start().line;
            let path = if *word == "self" { path.to_vec() } else { [path, &[word.to_string()]].concat() };
            follow(&item[1..], path, line, into);
        }
    }
}

/// `now()`, which is a call; `now` alone is a time that was handed over.
fn reads_the_clock(word: &str, next: Option<&TokenTree>) -> bool {
    word == "now" && matches!(next, Some(TokenTree::Group(group)) if group.stream().is_empty())
}

/// All identifiers that `wanted` chooses by themselves and the token behind them, with their lines.
fn idents(tokens: &TokenStream, wanted: &dyn Fn(&str, Option<&TokenTree>) -> bool) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut tokens = tokens.clone().into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Group(group) => found.extend(idents(&group.stream(), wanted)),
            TokenTree::Ident(word) if wanted(&word.to_string(), tokens.peek()) => {
                found.push((word.span().start().line, word.to_string()));
            }
            _ => {}
        }
    }
    found
}

/// The tokens without modules under `#[cfg(test)]`.
fn without_tests(tokens: &TokenStream) -> TokenStream {
    let mut kept: Vec<TokenTree> = Vec::new();
    let mut testing = false;
    for token in tokens.clone() {
        match &token {
            TokenTree::Group(group) if group.to_string().replace(' ', "") == "[cfg(test)]" => testing = true,
            TokenTree::Group(group) if testing && group.delimiter() == Delimiter::Brace => testing = false,
            TokenTree::Punct(punct) if testing && punct.as_char() == ';' => testing = false,
            _ if testing => {}
            _ => kept.push(token),
        }
    }
    kept.into_iter().collect()
}

/// Functions that are too long, by the line they begin in.
fn long_functions(tokens: &TokenStream) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut function: Option<(usize, String)> = None;
    let mut after_fn = None;
    for token in tokens.clone() {
        match &token {
            TokenTree::Ident(word) if *word == "fn" => after_fn = Some(word.span().start().line),
            // A name tells a function from the type `fn()`.
            TokenTree::Ident(word) if after_fn.is_some() => {
                function = after_fn.take().map(|line| (line, word.to_string()));
            }
            TokenTree::Punct(punct) if punct.as_char() == ';' => function = None,
            TokenTree::Group(group) => {
                after_fn = None;
                found.extend(long_functions(&group.stream()));
                if group.delimiter() == Delimiter::Brace
                    && let Some((start, name)) = function.take()
                {
                    let lines = group.span_close().end().line - start + 1;
                    if lines > FUNCTION_LINES_MAX {
                        found.push((start, format!("`{name}` has {lines} lines")));
                    }
                }
            }
            _ => {}
        }
    }
    found
}
