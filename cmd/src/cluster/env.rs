//! `cluster env`: what etcdctl and kubectl need to reach a local cluster, as lines for a shell.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::state::Layout;
use crate::pki::{Authority, Subject, write_private};

#[derive(clap::Args)]
pub struct EnvArgs {
    /// Name of the cluster
    #[arg(long, default_value = "default")]
    name: String,
}

/// Writes the administrator's certificate and key beside the cluster's data and prints the settings that name them.
pub fn run(args: EnvArgs) -> Result<()> {
    let layout = Layout::of(&args.name)?;
    let state = layout.existing()?;
    let authority = Authority::load(&layout.pki())?;
    let leaf =
        authority.issue(&Subject { common_name: "pintle-admin", organizations: &["system:masters"], names: &[] })?;
    let directory = layout.root.join("admin");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let (certificate, key) = (directory.join("admin.crt"), directory.join("admin.key"));
    write_private(&certificate, &leaf.certificate)?;
    write_private(&key, &leaf.key)?;
    let endpoints: Vec<String> = state.servers.iter().map(|server| format!("https://{}", server.client)).collect();
    let files = [
        ("ETCDCTL_CACERT", authority.certificate_path()),
        ("ETCDCTL_CERT", certificate),
        ("ETCDCTL_KEY", key),
        ("KUBECONFIG", layout.kubeconfig()),
    ];
    println!("export ETCDCTL_API=3");
    println!("export ETCDCTL_ENDPOINTS={}", endpoints.join(","));
    for (name, path) in files {
        println!("export {name}={}", quoted(&path));
    }
    println!("# To use these settings in this shell:  eval \"$(pintle cluster env --name {})\"", state.name);
    Ok(())
}

/// In single quotes, as every shell reads it.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
