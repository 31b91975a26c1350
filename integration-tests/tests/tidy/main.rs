//! Rules of the house that no compiler keeps, read from the sources: which floor may import which
//! (`walls`), no import circles (`circles`), sizes (`sizes`), and the language of comments
//! (`language`).

mod circles;
mod language;
mod sizes;
mod walls;

use std::fs;
use std::path::{Path, PathBuf};

/// The folders of Rust sources that the rules of language and sizes hold for.
const FOLDERS: &[&str] = &[
    "raft-core",
    "raft-storage",
    "raft-transport-quic",
    "kv-service",
    "integration-tests",
    "bench",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member has a workspace").to_owned()
}

/// Every Rust file below a folder of the workspace, builds left out.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![workspace().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a source folder can be listed") {
            let path = entry.expect("a source folder can be listed").path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("sources are UTF-8");
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {folder}");
    found.sort();
    found
}

/// The path of a source file within the workspace.
fn place(path: &Path) -> String {
    path.strip_prefix(workspace()).unwrap_or(path).display().to_string()
}

fn assert_none(offences: &[String], rule: &str) {
    assert!(offences.is_empty(), "{rule}:\n{}", offences.join("\n"));
}

#[test]
fn no_file_imports_itself_by_way_of_others() {
    let floors: [(&str, &[&str]); 3] =
        [("raft-core", &["consensus"]), ("raft-core", &["driver"]), ("kv-service", &[])];
    for (member, floor) in floors {
        let src = workspace().join(member).join("src");
        let sources = sources(&format!("{member}/src"));
        let is_library = |path: &Path| !path.starts_with(src.join("bin"));
        let is_test = |path: &Path| path.file_stem().is_some_and(|stem| stem == "tests");
        let below_src = |path: &PathBuf| path.strip_prefix(&src).expect("below src").to_owned();
        let files: Vec<(PathBuf, &str)> = sources
            .iter()
            .filter(|(path, _)| is_library(path) && !is_test(path))
            .map(|(path, text)| (below_src(path), text.as_str()))
            .collect();
        let imports = circles::Imports::of(&files);
        let floor: Vec<String> = floor.iter().map(|part| (*part).to_owned()).collect();
        let circles = imports.circles(&floor);
        let text: Vec<String> = circles.iter().map(|circle| circle.join("\n")).collect();
        assert_none(&text, &format!("files of {member} import each other in a circle"));
    }
}

#[test]
fn files_and_functions_fit() {
    let mut offences = Vec::new();
    for (path, text) in FOLDERS.iter().flat_map(|folder| sources(folder)) {
        let lines = text.lines().count();
        if lines > sizes::FILE_LINES_MAX {
            offences.push(format!("{}: {lines} lines", place(&path)));
        }
        for (line, name, lines) in sizes::long_functions(&text) {
            offences.push(format!("{}:{line}: `{name}` has {lines} lines", place(&path)));
        }
    }
    let (file, function) = (sizes::FILE_LINES_MAX, sizes::FUNCTION_LINES_MAX);
    assert_none(&offences, &format!("files have {file} lines at most, functions {function}"));
}

#[test]
fn comments_are_plain_english() {
    let mut offences = Vec::new();
    for (path, text) in FOLDERS.iter().flat_map(|folder| sources(folder)) {
        // It quotes the words.
        if path.ends_with("tidy/language.rs") {
            continue;
        }
        for (line, offence) in language::offences(&text) {
            offences.push(format!("{}:{line}: {offence}", place(&path)));
        }
    }
    assert_none(&offences, "see CONTRIBUTING.md, section Language");
}

#[test]
fn a_module_with_children_is_a_mod_file() {
    let mut offences = Vec::new();
    for (path, _) in FOLDERS.iter().flat_map(|folder| sources(&format!("{folder}/src"))) {
        if path.with_extension("").is_dir() {
            offences.push(place(&path));
        }
    }
    assert_none(&offences, "`foo/mod.rs`, not `foo.rs` beside `foo/`");
}
