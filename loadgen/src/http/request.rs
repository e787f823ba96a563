//! The request: a GET that every connection sends.

use serde::{Deserialize, Serialize};

/// The bytes of a GET.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// `authority` is what the URL names between `http://` and the path. With `close` the server is asked to end
    /// the connection after its response.
    pub(crate) fn get(authority: &str, path: &str, close: bool) -> Result<Self, String> {
        check_authority(authority)?;
        check_path(path)?;
        let connection = if close { "Connection: close\r\n" } else { "" };
        let text = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\n{connection}\r\n");
        Ok(Self { bytes: text.into_bytes() })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn check_authority(authority: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()*+,;=:[]".contains(c);
    if authority.is_empty() || !authority.chars().all(plain) {
        return Err(format!(
            "'{}' is no host; write the target as http://host:port/path",
            authority.escape_debug()
        ));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), String> {
    let shown = path.escape_debug();
    if !path.starts_with('/') {
        return Err(format!("'{shown}' is no path; it begins with /, as in http://host:port/path"));
    }
    if let Some((before, _)) = path.split_once('#') {
        return Err(format!(
            "'{shown}' has a fragment, which no server is sent; write '{}'",
            before.escape_debug()
        ));
    }
    match path.chars().find(|c| !c.is_ascii_graphic()) {
        Some(wrong) => {
            let escaped: String = wrong.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect();
            Err(format!("'{shown}' is no path: '{}' must be written as {escaped}", wrong.escape_debug()))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::http::Request;

    #[test]
    fn a_get_names_path_and_host() {
        let request = Request::get("127.0.0.1:8080", "/a?b=%20", false).expect("valid");
        assert_eq!(request.bytes(), b"GET /a?b=%20 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n");
        let request = Request::get("[::1]", "/", true).expect("valid");
        assert_eq!(request.bytes(), b"GET / HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n");
    }

    #[test]
    fn wrong_paths_and_hosts_say_how_to_write_them_in_one_line() {
        for (authority, path, told) in [
            ("h", "", "'' is no path; it begins with /"),
            ("h", "index.html", "it begins with /"),
            ("h", "/a b", "' ' must be written as %20"),
            ("h", "/a\r\nHost: x", r"'\r' must be written as %0D"),
            ("h", "/\u{7f}", "%7F"),
            ("h", "/é", "%C3%A9"),
            ("h", "/a#b", "write '/a'"),
            ("", "/", "'' is no host"),
            ("h\r\nX: y", "/", "is no host"),
            ("user@h", "/", "is no host"),
        ] {
            let error = Request::get(authority, path, false).expect_err(path);
            assert!(error.contains(told) && !error.contains(['\n', '\r']), "{error}");
        }
    }
}
