//! Kubeconfig files: the one a cluster writes for its administrator, and merging it into the user's own.
//!
//! Always holds: merging touches only the entries of this cluster's context, and removing takes out exactly what merging
//! put in; every other entry and the order of entries stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::cluster::state::Layout;
use crate::pki::{Authority, Leaf, Subject, write_private};

#[derive(clap::Args)]
pub struct KubeconfigArgs {
    /// Name of the local cluster
    #[arg(long, default_value = "default")]
    name: String,
    /// Merge into this file (default: the first of $KUBECONFIG, else ~/.kube/config) instead of printing
    #[arg(long)]
    merge: bool,
    /// User name of the client certificate
    #[arg(long, default_value = "pintle-admin")]
    user: String,
    /// Group of the client certificate; system:masters may do everything
    #[arg(long, default_value = "system:masters")]
    group: String,
    /// Seconds the client certificate is valid
    #[arg(long, default_value_t = 365 * 24 * 3600, value_name = "SECONDS")]
    ttl: u64,
}

pub fn run(args: KubeconfigArgs) -> Result<()> {
    let layout = Layout::of(&args.name)?;
    let mut state = layout.existing()?;
    let authority = Authority::load(&layout.pki())?;
    let subject = Subject { common_name: &args.user, organizations: &[&args.group], names: &[] };
    let leaf = authority.issue_for(&subject, Duration::from_secs(args.ttl))?;
    let (context, server) = (state.context(), format!("https://{}", state.balancer));
    let access = Access { context: &context, server: &server, authority: &authority.certificate, leaf: &leaf };
    if !args.merge {
        print!("{}", serde_saphyr::to_string(&access.document()).context("write kubeconfig as YAML")?);
        return Ok(());
    }
    let path = default_path()?;
    state.kubeconfig = Some(path.clone());
    layout.save(&state)?;
    if let Some(previous) = merge(&path, &access)? {
        state.previous_context = Some(previous);
        layout.save(&state)?;
    }
    eprintln!("context \"{context}\" is now current in {}", path.display());
    Ok(())
}

/// What a client needs to reach a cluster as one user.
pub struct Access<'a> {
    /// Name of context, cluster and user: `pintle-<cluster>`.
    pub context: &'a str,
    pub server: &'a str,
    pub authority: &'a str,
    pub leaf: &'a Leaf,
}

impl Access<'_> {
    fn cluster(&self) -> Value {
        json!({"name": self.context, "cluster": {
            "certificate-authority-data": BASE64.encode(self.authority), "server": self.server}})
    }

    fn user(&self) -> Value {
        json!({"name": self.context, "user": {
            "client-certificate-data": BASE64.encode(&self.leaf.certificate),
            "client-key-data": BASE64.encode(&self.leaf.key)}})
    }

    fn entry(&self) -> Value {
        json!({"name": self.context, "context": {"cluster": self.context, "user": self.context}})
    }

    /// A complete kubeconfig with this one context.
    pub fn document(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "Config", "preferences": {}, "clusters": [self.cluster()],
            "users": [self.user()], "contexts": [self.entry()], "current-context": self.context})
    }
}

/// The file kubectl would write to: the first of `$KUBECONFIG`, else `~/.kube/config`.
pub fn default_path() -> Result<PathBuf> {
    if let Some(list) = std::env::var_os("KUBECONFIG")
        && let Some(first) = std::env::split_paths(&list).find(|path| !path.as_os_str().is_empty())
    {
        return Ok(first);
    }
    let home = std::env::var_os("HOME").context("neither KUBECONFIG nor HOME is set")?;
    Ok(Path::new(&home).join(".kube/config"))
}

/// Adds the context to the file at `path` and makes it current. Returns the context that was current before.
pub fn merge(path: &Path, access: &Access<'_>) -> Result<Option<String>> {
    let mut document = read(path)?.unwrap_or_else(|| json!({"apiVersion": "v1", "kind": "Config", "preferences": {}}));
    upsert(&mut document, "clusters", access.cluster())?;
    upsert(&mut document, "users", access.user())?;
    upsert(&mut document, "contexts", access.entry())?;
    let before = document["current-context"].as_str().filter(|name| !name.is_empty()).map(str::to_owned);
    document["current-context"] = json!(access.context);
    write(path, &document)?;
    Ok(before.filter(|name| name != access.context))
}

/// Takes the context out of the file at `path`; the context `before` becomes current again if ours was and it still exists.
pub fn remove(path: &Path, context: &str, before: Option<&str>) -> Result<()> {
    let Some(mut document) = read(path)? else { return Ok(()) };
    for list in ["clusters", "users", "contexts"] {
        if let Some(entries) = document[list].as_array_mut() {
            entries.retain(|entry| entry["name"] != context);
        }
    }
    if document["current-context"] == context {
        let exists = |name: &&str| {
            document["contexts"].as_array().is_some_and(|list| list.iter().any(|entry| entry["name"] == **name))
        };
        let restored = before.filter(exists).unwrap_or("").to_owned();
        document["current-context"] = json!(restored);
    }
    let empty =
        ["clusters", "users", "contexts"].iter().all(|list| document[*list].as_array().is_none_or(Vec::is_empty));
    if empty {
        return fs::remove_file(path).with_context(|| format!("remove {}", path.display()));
    }
    write(path, &document)
}

fn upsert(document: &mut Value, list: &str, entry: Value) -> Result<()> {
    if document[list].is_null() {
        document[list] = json!([]);
    }
    let Some(entries) = document[list].as_array_mut() else { bail!("kubeconfig: {list} is not a list") };
    match entries.iter_mut().find(|old| old["name"] == entry["name"]) {
        Some(old) => *old = entry,
        None => entries.push(entry),
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<Value>> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => {
            let document: Value =
                serde_saphyr::from_str(&text).with_context(|| format!("parse kubeconfig {}", path.display()))?;
            if !document.is_object() {
                bail!("{} is not a kubeconfig", path.display());
            }
            Ok(Some(document))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read kubeconfig {}", path.display())),
    }
}

/// Writes the file with mode 0600, and gives it to the user behind sudo.
pub fn write(path: &Path, document: &Value) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    write_private(path, &serde_saphyr::to_string(document).context("write kubeconfig as YAML")?)?;
    let id = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if let (Some(uid), Some(gid)) = (id("SUDO_UID"), id("SUDO_GID")) {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))
            .with_context(|| format!("give {} to the user behind sudo", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access<'a>(leaf: &'a Leaf, context: &'a str) -> Access<'a> {
        Access { context, server: "https://127.0.0.1:6443", authority: "CA", leaf }
    }

    #[test]
    fn removing_restores_the_file_as_it_was() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("config");
        let leaf = Leaf { certificate: "C".into(), key: "K".into() };
        merge(&path, &access(&leaf, "mine")).expect("merge");
        let original = read(&path).expect("read");
        let before = merge(&path, &access(&leaf, "pintle-test")).expect("merge");
        assert_eq!(before.as_deref(), Some("mine"));
        assert_eq!(merge(&path, &access(&leaf, "pintle-test")).expect("again"), None);
        remove(&path, "pintle-test", before.as_deref()).expect("remove");
        assert_eq!(read(&path).expect("read"), original);
    }

    #[test]
    fn removing_the_last_context_removes_the_file() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("config");
        let leaf = Leaf { certificate: "C".into(), key: "K".into() };
        merge(&path, &access(&leaf, "pintle-test")).expect("merge");
        remove(&path, "pintle-test", None).expect("remove");
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_refused_and_kept() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("config");
        fs::write(&path, "- a list\n").expect("write");
        let leaf = Leaf { certificate: "C".into(), key: "K".into() };
        assert!(merge(&path, &access(&leaf, "x")).is_err());
        assert_eq!(fs::read_to_string(&path).expect("read"), "- a list\n");
    }
}
