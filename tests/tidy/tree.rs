//! The files of the repository: what git tracks or would add.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A file of the repository.
pub struct File {
    /// Path from the root, with `/`.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// The content, where it is text.
    pub text: Option<String>,
}

impl File {
    /// Whether the path ends in one of these.
    pub fn ends(&self, ends: &[&str]) -> bool {
        ends.iter().any(|end| self.path.ends_with(end))
    }

    /// Whether the path starts with one of these.
    pub fn under(&self, folders: &[&str]) -> bool {
        folders.iter().any(|folder| self.path.starts_with(folder))
    }
}

/// All files of the repository at `root`; without git, all but build outputs.
pub fn files(root: &Path) -> Vec<File> {
    let mut paths = listed_by_git(root).unwrap_or_else(|| walk(root));
    paths.sort();
    paths.dedup();
    paths.into_iter().filter_map(|path| read(root, path)).collect()
}

fn read(root: &Path, path: String) -> Option<File> {
    let full = root.join(&path);
    let bytes = fs::symlink_metadata(&full).ok()?.len();
    let text =
        if bytes < 4 << 20 { fs::read(&full).ok().and_then(|b| String::from_utf8(b).ok()) } else { None };
    Some(File { path, bytes, text })
}

fn listed_by_git(root: &Path) -> Option<Vec<String>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let paths: Vec<String> = text.split('\0').filter(|p| !p.is_empty()).map(str::to_owned).collect();
    (output.status.success() && !paths.is_empty()).then_some(paths)
}

fn walk(root: &Path) -> Vec<String> {
    let (mut paths, mut folders) = (vec![], vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    folders.push(path);
                }
            } else if let Ok(relative) = path.strip_prefix(root) {
                paths.push(relative.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    paths
}
