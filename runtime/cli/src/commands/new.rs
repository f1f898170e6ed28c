//! `ebb new`: an app from a template. Everything it needs comes with this binary, the SDK included.

use crate::args::{New, Template};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use ebb_domain::name::AppName;
use std::io;
use std::path::{Path, PathBuf};

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
}

/// Where the templates' dependency finds the SDK.
const SDK_FOLDER: &str = ".ebb/sdk";

/// Makes the app, and says how to go on.
pub(crate) fn run(output: Output, args: New) -> Result<Exit, Failure> {
    let folder = args.path.unwrap_or_else(|| PathBuf::from(&args.name));
    let name = make(&folder, &args.name, args.template)?;
    if output.json {
        output.json(&serde_json::json!({ "name": &*name, "path": folder }))?;
        return Ok(Exit::Done);
    }
    let style = output.style();
    output.line(format_args!("{} {} in {}\n", style.good("made"), style.strong(&name), folder.display()))?;
    let step = |command: &str, what: &str| output.line(format_args!("  {command:34}{}", style.faint(what)));
    if folder != Path::new(".") {
        output.line(format_args!("  cd {}", folder.display()))?;
    }
    step("cargo test", "given, when, then: no server needed")?;
    step("ebb dev", "build it, run it, watch it")?;
    if args.template == Template::Http {
        step("curl http://127.0.0.1:8080/hello/Ann", "call it, from another terminal")?;
        return Ok(Exit::Done);
    }
    step("ebb command counter a increment '{\"by\": 1}'", "send a command, from another terminal")?;
    if args.template == Template::AggregateProjection {
        step("ebb query totals", "read what the projection made of it")?;
    }
    Ok(Exit::Done)
}

fn make(folder: &Path, name: &str, template: Template) -> Result<AppName, Failure> {
    let name = AppName::new(name).map_err(Failure::new)?;
    prepare(folder)?;
    write(folder, &name, template)
        .map_err(|(path, error)| Failure::new(format!("{} can't be written: {error}", path.display())))?;
    Ok(name)
}

/// The folder, there and empty. A `.git` alone does not count: `git init` often comes first.
fn prepare(folder: &Path) -> Result<(), Failure> {
    let unusable = |error: io::Error| Failure::new(format!("{} can't be used: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(unusable)?;
    for entry in std::fs::read_dir(folder).map_err(unusable)? {
        let name = entry.map_err(unusable)?.file_name();
        if name != ".git" {
            return Err(Failure::new(format!(
                "{} is not empty: it has {}",
                folder.display(),
                name.display()
            ))
            .hint("name an empty folder with --path, or one that is not there yet"));
        }
    }
    Ok(())
}

fn write(folder: &Path, name: &AppName, template: Template) -> Result<(), (PathBuf, io::Error)> {
    let files = match template {
        Template::Aggregate => embedded::AGGREGATE,
        Template::AggregateProjection => embedded::AGGREGATE_PROJECTION,
        Template::Http => embedded::HTTP,
    };
    for (path, contents) in files {
        put(&folder.join(path), &filled_in(contents, name))?;
    }
    if template == Template::Http {
        // A plain component: it has no use for the SDK.
        return Ok(());
    }
    embedded::SDK.iter().try_for_each(|(path, contents)| put(&folder.join(SDK_FOLDER).join(path), contents))
}

fn put(path: &Path, contents: &[u8]) -> Result<(), (PathBuf, io::Error)> {
    let written =
        path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, contents));
    written.map_err(|error| (path.to_owned(), error))
}

/// `{{name}}` replaced; a file that is not text is left as it is.
fn filled_in(contents: &[u8], name: &AppName) -> Vec<u8> {
    match std::str::from_utf8(contents) {
        Ok(text) => text.replace("{{name}}", name).into_bytes(),
        Err(_) => contents.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebb_domain::manifest::Manifest;

    fn made(template: Template) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), "tally", template).unwrap();
        folder
    }

    #[test]
    fn every_template_has_a_valid_manifest_with_the_apps_name() {
        for template in [Template::Aggregate, Template::AggregateProjection, Template::Http] {
            let folder = made(template);
            let text = std::fs::read_to_string(folder.path().join("ebb.toml")).unwrap();
            assert_eq!(&*Manifest::parse(&text).unwrap().name, "tally");
        }
    }

    #[test]
    fn no_placeholder_is_left() {
        fn look(folder: &Path) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    look(&path);
                } else {
                    assert!(
                        !std::fs::read_to_string(&path).unwrap().contains("{{name}}"),
                        "{}",
                        path.display()
                    );
                }
            }
        }
        look(made(Template::AggregateProjection).path());
    }

    #[test]
    fn the_sdk_comes_along_without_build_output() {
        let folder = made(Template::Aggregate);
        assert!(folder.path().join(".ebb/sdk/Cargo.toml").exists());
        assert!(folder.path().join(".ebb/sdk/src/lib.rs").exists());
        assert!(!folder.path().join(".ebb/sdk/target").exists());
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        let failure = make(folder.path(), "tally", Template::Aggregate).unwrap_err();
        assert!(failure.message.contains("notes.txt"), "{failure}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
