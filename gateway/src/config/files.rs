//! Which files make up the configuration, and the secrets they point to: the only reading from disk.
//!
//! Everything read is bounded: a wrong path must not fill the memory of a small board.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{
    Login,
    document::{Node, Section},
    problem::{Source, Word},
    read::{Need, Secrets},
    units,
};

/// A cabinet's file has a few hundred lines; 1 MiB is far beyond and still parses in a moment.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// All files together: what the parsed form of them may take of 512 MiB of memory.
const ALL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Files in `gardu.d`: one a cabinet.
const FILES_MAX: usize = 256;
/// A map of [`super::profile::POINTS_MAX`] points with their remarks.
const PROFILE_BYTES_MAX: u64 = 64 * 1024;
/// A password or token has a line; a whole file by mistake has more.
const SECRET_BYTES_MAX: u64 = 4 * 1024;
/// Certificates of every authority a system trusts take a fifth of this, one's own chain and key a hundredth.
const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// The longest MQTT user name or password (MQTT 5.0 §1.5.4, 1.5.6).
const LOGIN_CHARS_MAX: usize = 1024;

/// Why a file's text is missing or cut: the byte, the text's key and its values.
pub(super) type Trouble = (Option<usize>, &'static str, Vec<(&'static str, Word)>);

/// Reads the main file and every `*.toml` in `gardu.d` beside it, by name.
pub(super) fn gather(path: &Path) -> Vec<(Source, Option<Trouble>)> {
    let unread = |path: PathBuf, trouble| (Source { path, text: String::new() }, Some(trouble));
    let mut files = vec![read(path.to_owned(), FILE_BYTES_MAX)];
    let folder = path.parent().unwrap_or(Path::new("")).join("gardu.d");
    let extra = match list(&folder) {
        Ok(extra) => extra,
        Err(e) => {
            files.push(unread(folder, (None, "check-folder", vec![("reason", reason(&e))])));
            return files;
        }
    };
    let mut bytes_left = ALL_BYTES_MAX;
    for (count, path) in extra.into_iter().enumerate() {
        if count == FILES_MAX || bytes_left == 0 {
            let mib = (ALL_BYTES_MAX >> 20).to_string();
            let args = vec![("files", FILES_MAX.to_string().into()), ("mib", mib.into())];
            files.push(unread(path, (None, "check-files", args)));
            break;
        }
        let file = read(path, FILE_BYTES_MAX);
        bytes_left = bytes_left.saturating_sub(file.0.text.len());
        files.push(file);
    }
    files
}

/// The operator's own profile at `path`, if there is one.
pub(super) fn profile(path: PathBuf) -> Option<(Source, Option<Trouble>)> {
    let missing = fs::metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    (!missing).then(|| read(path, PROFILE_BYTES_MAX))
}

/// The names that a folder of profiles offers, as far as it can be read: they are only hints.
pub(super) fn profile_names(folder: &Path) -> Vec<String> {
    let files = list(folder).unwrap_or_default();
    files.iter().filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).take(FILES_MAX).collect()
}

fn read(path: PathBuf, bytes_max: u64) -> (Source, Option<Trouble>) {
    let (text, trouble) = match bytes(&path, bytes_max) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(e) => {
                // The rest of the file is checked as well; what replaces the byte does not move the place.
                let trouble = (Some(e.utf8_error().valid_up_to()), "check-utf8", vec![]);
                (String::from_utf8_lossy(e.as_bytes()).into_owned(), Some(trouble))
            }
        },
        Err(e) => {
            let trouble = match e.kind() {
                io::ErrorKind::IsADirectory => ("check-file-folder", vec![]),
                io::ErrorKind::FileTooLarge => ("check-file-large", vec![("max", units::show_size(bytes_max).into())]),
                io::ErrorKind::NotFound => ("check-file-missing", vec![]),
                _ => ("check-file-unreadable", vec![("reason", reason(&e))]),
            };
            (String::new(), Some((None, trouble.0, trouble.1)))
        }
    };
    (Source { path, text }, trouble)
}

/// The `*.toml` files of a folder that may be absent; what begins with a dot belongs to an editor.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let is_ours = |path: &PathBuf| {
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        !hidden && path.extension().is_some_and(|e| e == "toml")
    };
    let mut paths: Vec<PathBuf> = paths?.into_iter().filter(is_ours).collect();
    paths.sort_unstable();
    Ok(paths)
}

/// A file's bytes, unless it is larger than `bytes_max` or nothing that can be read to its end.
fn bytes(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

fn reason(error: &io::Error) -> Word {
    match error.kind() {
        io::ErrorKind::NotFound => Word::Say("check-io-missing"),
        io::ErrorKind::PermissionDenied => Word::Say("check-io-permission"),
        io::ErrorKind::IsADirectory => Word::Say("check-io-folder"),
        io::ErrorKind::NotADirectory => Word::Say("check-io-not-folder"),
        io::ErrorKind::FileTooLarge => Word::Say("check-io-large"),
        kind => kind.to_string().into(),
    }
}

/// Reads `username` and `password_file` of a section.
pub(super) fn login(section: &Section<'_>, secrets: Secrets<'_>) -> Option<Login> {
    let username = section.optional("username", |node| node.line(LOGIN_CHARS_MAX));
    let file = section.get("password_file");
    if file.is_some() && !section.has("username") {
        section.wrong("password_file", "check-password-alone", &[]);
    }
    let password = file.and_then(|node| secret(node, secrets));
    Some(Login { username: username?.to_owned(), password })
}

/// What the file named by a `*_file` key holds, without the line's end; nothing where it is not needed.
fn secret(node: Node<'_>, secrets: Secrets<'_>) -> Option<String> {
    let path = secret_path(node, secrets)?;
    if secrets.need == Need::None {
        return None;
    }
    let shown = ("path", path.display().to_string().into());
    let bytes = match bytes(&path, SECRET_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(e) => return node.wrong("check-secret-unreadable", &[shown, ("reason", reason(&e))]),
    };
    let Ok(text) = String::from_utf8(bytes) else { return node.wrong("check-secret-utf8", &[shown]) };
    let text = text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
    if text.is_empty() { node.wrong("check-secret-empty", &[shown]) } else { Some(text.to_owned()) }
}

/// A file of certificates or keys.
pub(super) struct PemFile {
    /// Where it is.
    pub(super) path: PathBuf,
    /// What it holds, where that is to be looked at.
    pub(super) bytes: Option<Vec<u8>>,
}

/// Reads the file of certificates or keys named by a `*_file` key.
pub(super) fn pem(node: Node<'_>, secrets: Secrets<'_>) -> Option<PemFile> {
    let path = secret_path(node, secrets)?;
    if secrets.need == Need::None {
        return Some(PemFile { path, bytes: None });
    }
    match bytes(&path, PEM_BYTES_MAX) {
        Ok(bytes) => Some(PemFile { path, bytes: Some(bytes) }),
        Err(e) => {
            let shown = ("path", path.display().to_string().into());
            node.wrong("check-pem-unreadable", &[shown, ("reason", reason(&e))])
        }
    }
}

/// The path of a `*_file` key; `${CREDENTIALS_DIRECTORY}` at its start is expanded.
fn secret_path(node: Node<'_>, secrets: Secrets<'_>) -> Option<PathBuf> {
    let Some(rest) = node.text()?.strip_prefix("${CREDENTIALS_DIRECTORY}") else { return file_path(node) };
    match secrets.credentials {
        None if secrets.need != Need::All => None,
        Some(folder) => Some(folder.join(rest.trim_start_matches('/'))),
        None => node.wrong("check-credentials", &[]),
    }
}

/// A path, relative to the folder of the file it is written in.
pub(super) fn file_path(node: Node<'_>) -> Option<PathBuf> {
    let text = node.line(4096)?; // PATH_MAX
    if text.contains('$') {
        return node.wrong("check-variable", &[("value", text.into())]);
    }
    Some(node.findings.sources[node.spot.file].folder().join(text))
}
