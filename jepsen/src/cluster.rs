//! A local cluster as its user sees it: the `pintle` program and the kubeconfig it prints.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use pintle_base::clock;
use pintle_base::task::Group;
use pintle_client::remote::{Connection, Options, tls};
use serde_json::Value;
use tokio::process::Command;

pub struct Cluster {
    pub pintle: PathBuf,
    pub name: String,
    /// `PINTLE_HOME`, if not that of this process.
    pub home: Option<PathBuf>,
}

impl Cluster {
    async fn pintle(&self, arguments: &[&str]) -> Result<String> {
        let home = self.home.as_ref().map(|home| ("PINTLE_HOME", home));
        let output = Command::new(&self.pintle)
            .envs(home)
            .args(arguments)
            .args(["--name", &self.name])
            .output()
            .await
            .with_context(|| format!("run {}", self.pintle.display()))?;
        // `status` tells an unhealthy cluster by code 5 and still prints it.
        if !output.status.success() && output.status.code() != Some(5) {
            bail!("pintle {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    pub async fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.pintle(&["cluster", "status", "-o", "json"]).await?).context("parse the status")
    }

    pub async fn kill(&self, member: &str) -> Result<()> {
        self.pintle(&["cluster", "kill", member]).await.map(drop)
    }

    pub async fn start(&self, member: &str) -> Result<()> {
        self.pintle(&["cluster", "start", member]).await.map(drop)
    }

    /// The leader's name, once there is one and every server is up.
    pub async fn whole(&self, limit: Duration) -> Result<String> {
        let deadline = clock::now() + limit;
        loop {
            let status = self.status().await?;
            let servers = status["servers"].as_array().cloned().unwrap_or_default();
            let role = |server: &Value| server["role"].as_str().unwrap_or_default().to_owned();
            let leader = servers.iter().find(|server| role(server) == "leader");
            if let Some(leader) = leader
                && servers.iter().all(|server| role(server) != "down")
            {
                return Ok(leader["name"].as_str().unwrap_or_default().to_owned());
            }
            if clock::now() > deadline {
                bail!("the cluster is not whole after {} s: {status}", limit.as_secs());
            }
            clock::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A client of its own to the cluster's one address.
    pub async fn client(&self, group: &Group) -> Result<kube::Client> {
        let config: Value =
            serde_saphyr::from_str(&self.pintle(&["kubeconfig"]).await?).context("parse the kubeconfig")?;
        let bytes = |value: &Value| -> Result<Vec<u8>> {
            let text = value.as_str().context("kubeconfig lacks a certificate")?;
            base64::engine::general_purpose::STANDARD.decode(text).context("decode a certificate")
        };
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let authority = bytes(&cluster["certificate-authority-data"])?;
        let (certificate, key) = (bytes(&user["client-certificate-data"])?, bytes(&user["client-key-data"])?);
        let settings = tls::client_config(&authority, Some((&certificate, &key)))?;
        let endpoint = cluster["server"].as_str().context("kubeconfig lacks the server")?.parse()?;
        Ok(Connection::start(Options::new(vec![endpoint], settings), group)?.kube_client())
    }
}
