//! Images of local workers: the two that pintle builds itself, and archives that the user imports.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use pintle_node::images::{Entry, ImageSpec, archive};
use pintle_node::runtime::{CriRuntime, Runtime as _};

use crate::cluster::state::{Layout, Runtime};
use crate::cluster::worker_socket;

/// The image of examples and tests: Debian's static busybox under the names its applets have.
const BUSYBOX_IMAGE: &str = "pintle.local/busybox:1";
const BUSYBOX: &str = "/bin/busybox";

#[derive(clap::Subcommand)]
pub enum ImagesCommand {
    /// Load an image archive (docker save or OCI layout) into every worker of a local cluster
    Import {
        /// The archive
        file: PathBuf,
        /// Name of the cluster
        #[arg(long, default_value = "default")]
        name: String,
    },
    /// List the images of every worker of a local cluster
    List {
        /// Name of the cluster
        #[arg(long, default_value = "default")]
        name: String,
    },
}

pub async fn run(command: ImagesCommand) -> Result<()> {
    match command {
        ImagesCommand::Import { file, name } => {
            if !file.is_file() {
                bail!("there is no file {}", file.display());
            }
            let file = std::path::absolute(file).context("make the path absolute")?;
            let workers = workers(&name)?;
            let imports = workers.iter().map(async |(worker, socket)| {
                pintle_node::images::import(socket, &file).await.with_context(|| format!("import into {worker}"))?;
                eprintln!("  ✓ {worker}");
                Ok(())
            });
            join_all(imports).await.into_iter().collect::<Result<Vec<()>>>()?;
        }
        ImagesCommand::List { name } => {
            println!("{:<8} {:<40} SIZE", "WORKER", "IMAGE");
            for (worker, socket) in workers(&name)? {
                let runtime = CriRuntime::new(&socket);
                for image in runtime.images().await.with_context(|| format!("list images of {worker}"))? {
                    for tag in &image.repo_tags {
                        println!("{worker:<8} {tag:<40} {:.1} MB", image.size as f64 / 1e6);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Workers with real containers, and their containerd sockets.
fn workers(name: &str) -> Result<Vec<(String, PathBuf)>> {
    let layout = Layout::of(name)?;
    let state = layout.existing()?;
    let workers: Vec<_> = state
        .agents
        .iter()
        .filter(|agent| agent.runtime == Runtime::Cri)
        .map(|agent| (agent.name.clone(), worker_socket(&layout, &agent.name)))
        .collect();
    if workers.is_empty() {
        bail!("cluster {name:?} has no workers with real containers");
    }
    Ok(workers)
}

/// True once the containerd at `socket` serves.
pub async fn answers(socket: &Path) -> bool {
    CriRuntime::new(socket).version().await.is_ok()
}

/// Loads the sandbox image and, where Debian's static busybox is installed, the example image, unless they are there.
pub async fn load_builtin(socket: &Path) -> Result<()> {
    let runtime = CriRuntime::new(socket);
    let present = async |name: &str| -> Result<bool> {
        Ok(runtime.image(name).await.with_context(|| format!("look for image {name}"))?.is_some())
    };
    let directory = socket.parent().context("a socket has a directory")?;
    if !present(pintle_node::images::PAUSE_IMAGE).await? {
        let archive = directory.join("pause.tar");
        pintle_node::images::write_pause(&archive).context("build the sandbox image")?;
        load(socket, &archive).await?;
    }
    if Path::new(BUSYBOX).exists() && !present(BUSYBOX_IMAGE).await? {
        let archive = directory.join("busybox.tar");
        write_busybox(&archive)?;
        load(socket, &archive).await?;
    }
    Ok(())
}

async fn load(socket: &Path, archive: &Path) -> Result<()> {
    pintle_node::images::import(socket, archive).await.with_context(|| format!("import {}", archive.display()))?;
    fs::remove_file(archive).with_context(|| format!("remove {}", archive.display()))
}

/// Writes the example image: the static busybox, a link for each applet, and the directories programs expect.
fn write_busybox(path: &Path) -> Result<()> {
    let listing = crate::cluster::run_program(BUSYBOX, &["--list"])?;
    let mut entries = vec![
        Entry::Directory { path: "bin".into(), mode: 0o755 },
        Entry::File { path: "bin/busybox".into(), mode: 0o755, source: BUSYBOX.into() },
    ];
    let applets = listing.lines().filter(|name| !name.is_empty() && !name.contains('/') && *name != "busybox");
    entries.extend(applets.map(|name| Entry::Symlink { path: format!("bin/{name}"), target: "busybox".into() }));
    for (directory, mode) in
        [("etc", 0o755), ("home", 0o755), ("root", 0o700), ("tmp", 0o1777), ("var", 0o755), ("www", 0o755)]
    {
        entries.push(Entry::Directory { path: directory.into(), mode });
    }
    let accounts = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n".to_vec();
    entries.push(Entry::Data { path: "etc/passwd".into(), mode: 0o644, data: accounts });
    entries.push(Entry::Data {
        path: "etc/group".into(),
        mode: 0o644,
        data: b"root:x:0:\nnogroup:x:65534:\n".to_vec(),
    });
    let spec = ImageSpec {
        name: BUSYBOX_IMAGE.to_owned(),
        command: vec!["sh".into()],
        environment: vec!["PATH=/bin".into()],
        ..ImageSpec::default()
    };
    archive::write(path, &spec, entries).context("build the busybox image")
}
