//! Secrets as the operator keeps them: a file each, `FOLDER/APP/NAME`, under `functions.secrets`; or a variable of the
//! node's environment, `EBB_SECRET_APP__NAME`, with the app's name in capitals.

use ebb_domain::manifest::function::Variable;
use ebb_domain::name::AppName;
use ebb_domain::port::secrets::{NoSecret, Secret, Secrets};
use std::io::{ErrorKind, Read as _};
use std::path::PathBuf;

/// A secret at most, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// What a node has of secrets.
#[derive(Clone, Debug)]
pub(crate) struct NodeSecrets {
    folder: Option<PathBuf>,
}

impl NodeSecrets {
    pub(crate) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// A file's value, without the end of line that editors and `echo` leave; none if there is no such file.
    fn of_file(&self, app: &AppName, name: &Variable) -> Result<Option<String>, String> {
        let Some(folder) = &self.folder else { return Ok(None) };
        // Neither name can climb out: they are made of letters, digits, `_` and `-`.
        let path = folder.join(&**app).join(name.as_str());
        let unreadable = |error: std::io::Error| format!("{} can't be read: {error}", path.display());
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(unreadable(error)),
        };
        let mut value = String::new();
        file.take(MAX_BYTES + 1).read_to_string(&mut value).map_err(unreadable)?;
        if value.ends_with('\n') {
            value.pop();
            if value.ends_with('\r') {
                value.pop();
            }
        }
        Ok(Some(value))
    }
}

/// The variable of the environment; none for an app whose name would make it ambiguous, and let one app read another's.
fn variable_for(app: &AppName, name: &Variable) -> Option<String> {
    let app = app.to_ascii_uppercase().replace('-', "_");
    let ambiguous = app.contains("__") || app.ends_with('_') || name.as_str().starts_with('_');
    (!ambiguous).then(|| format!("EBB_SECRET_{app}__{name}"))
}

impl Secrets for NodeSecrets {
    fn get(&self, app: &AppName, name: &Variable) -> Result<Secret, NoSecret> {
        let file = self.folder.as_ref().map_or_else(
            || format!("the file `{app}/{name}` in the folder that `functions.secrets` names"),
            |folder| format!("the file {}", folder.join(&**app).join(name.as_str()).display()),
        );
        let variable = variable_for(app, name);
        let or = variable.as_ref().map_or(String::new(), |variable| {
            format!(", or into the variable `{variable}` of the node's environment and restart it")
        });
        let hint = format!("put its value into {file} on the node{or}");
        let none = |problem: String| NoSecret { problem, hint: hint.clone() };
        let value = match self.of_file(app, name) {
            Ok(Some(value)) => Some(value),
            Ok(None) => variable.and_then(|variable| std::env::var(variable).ok()),
            Err(problem) => return Err(none(format!("the secret `{name}`: {problem}"))),
        };
        let value = value.ok_or_else(|| none(format!("app `{app}` has no secret `{name}` on this node")))?;
        if value.len() as u64 > MAX_BYTES || value.contains('\0') {
            return Err(none(format!(
                "the secret `{name}` of app `{app}` is not text of at most {MAX_BYTES} bytes without zero characters"
            )));
        }
        Ok(Secret::new(&value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> AppName {
        AppName::new(name).unwrap()
    }

    fn name(name: &str) -> Variable {
        Variable::new(name).unwrap()
    }

    #[test]
    fn a_file_is_an_apps_own_and_its_last_end_of_line_is_not_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bank")).unwrap();
        std::fs::write(folder.path().join("bank/KEY"), "a\nb\n").unwrap();
        let secrets = NodeSecrets::new(Some(folder.path().to_owned()));
        assert_eq!(secrets.get(&app("bank"), &name("KEY")).unwrap().reveal(), "a\nb");
        let other = secrets.get(&app("shop"), &name("KEY")).unwrap_err();
        assert!(other.hint.contains("shop/KEY") && other.hint.contains("EBB_SECRET_SHOP__KEY"), "{other:?}");
        std::fs::write(folder.path().join("bank/KEY"), [0xff]).unwrap();
        assert!(secrets.get(&app("bank"), &name("KEY")).unwrap_err().problem.contains("can't be read"));
        std::fs::write(folder.path().join("bank/KEY"), "x".repeat((64 << 10) + 2)).unwrap();
        assert!(secrets.get(&app("bank"), &name("KEY")).unwrap_err().problem.contains("at most"));
    }

    #[test]
    fn no_two_apps_have_the_same_variable() {
        assert_eq!(variable_for(&app("my_bank"), &name("KEY")).as_deref(), Some("EBB_SECRET_MY_BANK__KEY"));
        assert_eq!(variable_for(&app("my"), &name("BANK__KEY")).as_deref(), Some("EBB_SECRET_MY__BANK__KEY"));
        assert_eq!(variable_for(&app("my"), &name("_KEY")), None);
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(…)");
    }
}
