//! Where results go: a folder that nothing else uses, written aside and renamed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    error::Error,
    machine::{Git, kernel},
    result::Document,
};

pub(crate) const RESULT: &str = "result.json";
const SCREEN: &str = "report.txt";
/// Runs of one day on one kernel and commit; beyond it something else is wrong.
const NUMBERS_MAX: usize = 10_000;

/// The folder of one run.
#[derive(Debug)]
pub(crate) struct Output {
    folder: PathBuf,
}

impl Output {
    /// Makes a new folder; one that holds something already is never touched.
    pub(crate) fn create(asked: Option<&Path>, git: Option<&Git>) -> Result<Self, Error> {
        let wanted = asked.map_or_else(|| default_folder(git), Path::to_path_buf);
        claim(&wanted).map(|folder| Self { folder }).map_err(|error| {
            Error::machine(format!(
                "cannot make the folder {}: {error}; choose another with -o",
                wanted.display()
            ))
        })
    }

    /// The path of the result, as it is shown.
    pub(crate) fn result_path(&self) -> PathBuf {
        self.folder.join(RESULT)
    }

    /// Replaces the result by this state of it, at once.
    pub(crate) fn write_result(&self, document: &Document) -> Result<String, Error> {
        let json = document.to_json()?;
        self.write(RESULT, &json)?;
        Ok(json)
    }

    /// Keeps the final screen beside the result.
    pub(crate) fn write_screen(&self, text: &str) -> Result<(), Error> {
        self.write(SCREEN, text)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.folder.join(name);
        replace(&path, text).map_err(|error| {
            Error::machine(format!("cannot write {}: {error}; is the disk full?", path.display()))
        })
    }
}

/// Writes a file aside and renames it, so that it is there whole or not at all.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.new"));
    fs::write(&aside, text).and_then(|()| fs::rename(&aside, path))
}

fn default_folder(git: Option<&Git>) -> PathBuf {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let date = now.split('T').next().unwrap_or_default();
    let commit = git.map_or("nogit", |git| git.commit.as_str());
    Path::new("results").join(format!("{date}-{}-{commit}", kernel()))
}

fn claim(wanted: &Path) -> io::Result<PathBuf> {
    if let Some(parent) = wanted.parent() {
        fs::create_dir_all(parent)?;
    }
    for number in 1..NUMBERS_MAX {
        let folder = numbered(wanted, number);
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if folder.is_dir() && fs::read_dir(&folder)?.next().is_none() {
                    return Ok(folder);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("all numbers for it are taken"))
}

fn numbered(wanted: &Path, number: usize) -> PathBuf {
    if number == 1 {
        return wanted.to_path_buf();
    }
    let mut name = wanted.as_os_str().to_owned();
    name.push(format!("-{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_holds_something_is_never_touched() {
        let root = std::env::temp_dir().join(format!("loadgen-output-{}", std::process::id()));
        let wanted = root.join("run");
        assert_eq!(claim(&wanted).expect("new"), wanted);
        assert_eq!(claim(&wanted).expect("empty"), wanted);
        fs::write(wanted.join("result.json"), "{}").expect("written");
        assert_eq!(claim(&wanted).expect("numbered"), root.join("run-2"));
        fs::write(root.join("run-2/result.json"), "{}").expect("written");
        assert_eq!(claim(&wanted).expect("numbered"), root.join("run-3"));
        fs::remove_dir_all(&root).expect("removed");
    }
}
