//! An app's folder: its manifest, its build, and the bundle that is deployed.

use crate::failure::{Exit, Failure};
use crate::output::Output;
use bytes::Bytes;
use ebb_app::bundle::{Bundle, normalise, to_entry_name};
use ebb_domain::manifest::{FILE_NAME, FilePurpose, FileRef, Manifest, Problems};
use ebb_domain::port::guest::{CompileError, Engine};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What an engine said about modules, by the manifest's key that names them.
#[derive(Debug, Default)]
pub(crate) struct Refusals(BTreeMap<String, CompileError>);

/// A folder with an `ebb.toml`.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    /// The folder.
    pub(crate) dir: PathBuf,
    /// The manifest as it is written.
    text: String,
}

impl Project {
    /// Reads the folder's manifest.
    ///
    /// # Errors
    /// There is none, or it is not text.
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(FILE_NAME);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            let failure = Failure::new(format!("{} can't be read: {error}", path.display()));
            if error.kind() == io::ErrorKind::NotFound {
                failure
                    .hint("name the folder that has the app's ebb.toml, or make an app with `ebb new NAME`")
            } else {
                failure
            }
        })?;
        Ok(Self { dir: dir.to_owned(), text })
    }

    /// The manifest, without a look at its files.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn manifest(&self) -> Result<Manifest, Failure> {
        Manifest::parse(&self.text).map_err(|problems| self.problems(&problems))
    }

    /// The manifest, and everything that can be said about its files without an engine.
    ///
    /// # Errors
    /// Everything that is wrong with the manifest and with its files.
    pub(crate) fn inspected(&self) -> Result<Manifest, Failure> {
        self.inspected_with(&Refusals::default())
    }

    /// The manifest, and everything that can be said about its files, the engine's refusals included.
    ///
    /// # Errors
    /// Everything that is wrong with the manifest and with its files.
    pub(crate) fn inspected_with(&self, refusals: &Refusals) -> Result<Manifest, Failure> {
        let inspect = |file: &FileRef| match std::fs::read(self.dir.join(&file.path)) {
            Ok(contents) => file
                .inspect(Some(&contents))
                .or_else(|| refusals.0.get(&file.key).map(|error| file.refused(error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => file.inspect(None),
            Err(error) => Some(file.unreadable(&error)),
        };
        Manifest::parse_with(&self.text, inspect).map_err(|problems| self.problems(&problems))
    }

    /// Compiles every module that is there, as a node would at deploy.
    pub(crate) async fn compile(&self, engine: &dyn Engine) -> Refusals {
        let mut modules = Vec::new();
        // Also of a manifest with problems: one report has everything.
        drop(Manifest::parse_with(&self.text, |file| {
            if let (FilePurpose::Module(kind), Ok(contents)) =
                (file.purpose, std::fs::read(self.dir.join(&file.path)))
                && file.inspect(Some(&contents)).is_none()
            {
                modules.push((file.key.clone(), kind, Bytes::from(contents)));
            }
            None
        }));
        let mut refusals = Refusals::default();
        for (key, kind, contents) in modules {
            if let Err(error) = engine.compile(contents, kind).await {
                refusals.0.insert(key, error);
            }
        }
        refusals
    }

    /// What a deploy sends: the manifest and every file that it names and that is there. What is missing, or wrong,
    /// is for whoever takes the bundle to say.
    pub(crate) fn bundle(&self) -> Bundle {
        let mut files = BTreeMap::from([(FILE_NAME.to_owned(), Bytes::from(self.text.clone()))]);
        // Also of a manifest with problems: its files are looked at all the same, so that one report has everything.
        drop(Manifest::parse_with(&self.text, |file| {
            if let (Some(name), Ok(contents)) =
                (normalise(&file.path), std::fs::read(self.dir.join(&file.path)))
            {
                files.insert(name, Bytes::from(contents));
            }
            None
        }));
        Bundle { files }
    }

    /// Problems as the end of a command.
    pub(crate) fn problems(&self, problems: &Problems) -> Failure {
        let count = problems.as_slice().len();
        let path = self.dir.join(FILE_NAME);
        let what = if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") };
        Failure::no(format!("{}: {what}", path.display())).details(render_problems(problems))
    }

    /// Runs the manifest's build, its output on stderr. Gives back whether there was anything to run.
    ///
    /// # Errors
    /// The build failed, or could not be started.
    pub(crate) async fn build(&self, output: Output) -> Result<bool, Failure> {
        let Some(build) = self.build_command()? else { return Ok(false) };
        output.note(output.note_style().faint(format_args!("$ {build}")));
        // Results go to stdout; what a compiler says is none.
        let stdout = std::os::fd::AsFd::as_fd(&io::stderr()).try_clone_to_owned();
        let status = tokio::process::Command::new("sh")
            .args(["-c", &build])
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(stdout.map_or_else(|_| Stdio::null(), Stdio::from))
            .kill_on_drop(true)
            .status()
            .await
            .map_err(|error| {
                Failure::new(format!("the build can't be started in {}: {error}", self.dir.display()))
            })?;
        if status.success() {
            return Ok(true);
        }
        let failure = Failure {
            exit: Exit::No,
            ..Failure::new(format!("the build failed: `{build}` ended with {status}"))
        };
        Err(match self.missing_target(&build).await {
            Some(target) => failure.hint(format_args!(
                "the Rust target {target} is not installed; get it with `rustup target add {target}`"
            )),
            None => failure,
        })
    }

    /// The build command. A manifest with problems elsewhere can be built all the same, as long as it is TOML: its
    /// modules may be among what is wrong.
    fn build_command(&self) -> Result<Option<String>, Failure> {
        match Manifest::parse(&self.text) {
            Ok(manifest) => Ok(manifest.build.map(|build| build.command)),
            Err(problems) => Err(self.problems(&problems)),
        }
    }

    /// The wasm target that a failed build asked for and that the compiler does not have.
    async fn missing_target(&self, build: &str) -> Option<&'static str> {
        let target = ["wasm32-wasip2", "wasm32-wasip1"].into_iter().find(|target| build.contains(target))?;
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let printed = tokio::process::Command::new(rustc)
            .args(["--print", "target-libdir", "--target", target])
            .current_dir(&self.dir)
            .output()
            .await
            .ok()
            .filter(|printed| printed.status.success())?;
        let folder = String::from_utf8(printed.stdout).ok()?;
        (!Path::new(folder.trim()).exists()).then_some(target)
    }
}

/// Problems one below the other, as a compiler shows them.
pub(crate) fn render_problems(problems: &Problems) -> String {
    problems.into_iter().map(|problem| format!("\n{problem}\n")).collect::<String>()
}

/// A bundle as it is sent: an uncompressed tar. The same files give the same bytes.
///
/// # Errors
/// A path is too long for a tar, or the bundle is larger than a node takes.
pub(crate) fn tar(bundle: &Bundle) -> Result<Vec<u8>, Failure> {
    let unpackable = |error: io::Error| Failure::new(format!("the bundle can't be packed: {error}"));
    let mut archive = tar::Builder::new(Vec::new());
    for (path, contents) in &bundle.files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, to_entry_name(path), &contents[..]).map_err(unpackable)?;
    }
    let packed = archive.into_inner().map_err(unpackable)?;
    if packed.len() as u64 > Bundle::MAX_BYTES {
        return Err(Failure::no(format!(
            "the bundle has {} bytes, more than the {} that a node takes",
            packed.len(),
            Bundle::MAX_BYTES
        ))
        .hint("build with --release, and strip the modules"));
    }
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    const MANIFEST: &str = r#"
[app]
name = "bank"

[build]
command = "echo built > built.txt"

[aggregate.account]
module = "../target/account.wasm"
commands = { open = { schema = "schemas/open.json" } }
events = { Opened = {} }
"#;

    fn project(folder: &Path) -> Project {
        let app = folder.join("bank");
        std::fs::create_dir_all(app.join("schemas")).unwrap();
        std::fs::create_dir_all(folder.join("target")).unwrap();
        std::fs::write(app.join(FILE_NAME), MANIFEST).unwrap();
        std::fs::write(app.join("schemas/open.json"), r#"{"type":"object"}"#).unwrap();
        std::fs::write(folder.join("target/account.wasm"), b"\0asm").unwrap();
        Project::open(&app).unwrap()
    }

    #[test]
    fn a_bundle_has_the_manifest_and_every_file_it_names_also_from_outside_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = project(folder.path()).bundle();
        let names: Vec<_> = bundle.files.keys().map(String::as_str).collect();
        assert_eq!(names, ["../target/account.wasm", "ebb.toml", "schemas/open.json"]);
    }

    #[test]
    fn the_tar_of_a_bundle_has_names_that_stay_inside_and_the_same_bytes_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = project(folder.path()).bundle();
        let packed = tar(&bundle).unwrap();
        assert_eq!(packed, tar(&bundle).unwrap());

        let mut archive = tar::Archive::new(&packed[..]);
        let mut found = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            assert!(!name.contains(".."), "{name}");
            found.insert(ebb_app::bundle::from_entry_name(&name).unwrap(), Bytes::from(contents));
        }
        assert_eq!(found, bundle.files);
    }

    #[tokio::test]
    async fn a_build_runs_in_the_apps_folder() {
        let folder = tempfile::tempdir().unwrap();
        let project = project(folder.path());
        assert!(project.build(Output::plain()).await.unwrap());
        assert_eq!(std::fs::read_to_string(project.dir.join("built.txt")).unwrap(), "built\n");
    }

    #[test]
    fn a_folder_without_manifest_says_how_to_make_one() {
        let folder = tempfile::tempdir().unwrap();
        let failure = Project::open(folder.path()).unwrap_err();
        assert!(failure.hint.unwrap().contains("ebb new"));
    }
}
