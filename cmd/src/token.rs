//! Join tokens: what a new worker needs to trust the cluster and to be trusted once.
//!
//! A token reads `pintle1.<sha256 of the cluster's authority>.<id>.<secret>`. Id and secret are a bootstrap token, kept as
//! Secret `bootstrap-token-<id>` in kube-system; the hash lets the worker check the server before it sends the secret.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pintle_base::clock;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;

use crate::cluster::control::admin;
use crate::cluster::state::Layout;
use crate::https::Https;
use crate::pki::Authority;

const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

#[derive(clap::Subcommand)]
pub enum TokenCommand {
    /// Make a token that workers can join with, and print it
    Create {
        /// Name of the local cluster
        #[arg(long, default_value = "default")]
        name: String,
        /// Seconds until it expires
        #[arg(long, default_value_t = 24 * 3600, value_name = "SECONDS")]
        ttl: u64,
    },
    /// List the tokens that exist, without their secrets
    List {
        /// Name of the local cluster
        #[arg(long, default_value = "default")]
        name: String,
    },
    /// Withdraw a token; workers that already joined stay
    Revoke {
        /// The token, or its id
        token: String,
        /// Name of the local cluster
        #[arg(long, default_value = "default")]
        name: String,
    },
}

pub async fn run(command: TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create { name, ttl } => {
            let layout = Layout::of(&name)?;
            let state = layout.existing()?;
            let fingerprint = Authority::load(&layout.pki())?.fingerprint()?;
            println!("{}", create(&admin(&layout)?, state.balancer, &fingerprint, Duration::from_secs(ttl)).await?);
        }
        TokenCommand::List { name } => {
            let layout = Layout::of(&name)?;
            list(&admin(&layout)?, layout.existing()?.balancer).await?;
        }
        TokenCommand::Revoke { token, name } => {
            let layout = Layout::of(&name)?;
            revoke(&admin(&layout)?, layout.existing()?.balancer, &token).await?;
        }
    }
    Ok(())
}

/// Stores a new bootstrap token that lives for `ttl` and returns the join token around it.
pub async fn create(https: &Https, server: SocketAddr, fingerprint: &str, ttl: Duration) -> Result<String> {
    let (id, secret) = (random_text(6)?, random_text(16)?);
    let expiration = jiff::Timestamp::try_from(clock::wall() + ttl).context("the token's end is out of range")?;
    let expiration = expiration.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "stringData": {
            "token-id": id, "token-secret": secret, "expiration": expiration,
            "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
            "auth-extra-groups": "system:bootstrappers:pintle",
        },
    });
    let deadline = clock::now() + Duration::from_secs(30);
    loop {
        let (status, body) = https
            .send(server, "POST", "/api/v1/namespaces/kube-system/secrets", Some(serde_json::to_vec(&object)?))
            .await?;
        match status {
            201 => return Ok(format!("pintle1.{fingerprint}.{id}.{secret}")),
            // A young cluster may not have its system namespaces yet.
            404 | 500..=599 if clock::now() < deadline => clock::sleep(Duration::from_millis(100)).await,
            _ => bail!("store the token: {}", message(status, &body)),
        }
    }
}

async fn list(https: &Https, server: SocketAddr) -> Result<()> {
    let path = "/api/v1/namespaces/kube-system/secrets?fieldSelector=type%3Dbootstrap.kubernetes.io%2Ftoken";
    let (status, body) = https.get(server, path).await?;
    if status != 200 {
        bail!("list tokens: {}", message(status, &body));
    }
    let list: serde_json::Value = serde_json::from_slice(&body)?;
    println!("{:<8} EXPIRES", "ID");
    for secret in list["items"].as_array().into_iter().flatten() {
        let field = |name: &str| {
            use base64::Engine;
            let bytes = base64::engine::general_purpose::STANDARD.decode(secret["data"][name].as_str()?).ok()?;
            String::from_utf8(bytes).ok()
        };
        println!(
            "{:<8} {}",
            field("token-id").unwrap_or_default(),
            field("expiration").unwrap_or_else(|| "never".into())
        );
    }
    Ok(())
}

async fn revoke(https: &Https, server: SocketAddr, token: &str) -> Result<()> {
    let id = match token.split('.').collect::<Vec<_>>()[..] {
        [id] => id,
        [_, _, id, _] | [id, _] => id,
        _ => bail!("this is neither a token nor the id of one"),
    };
    if id.len() != 6 || !id.bytes().all(|byte| ALPHABET.contains(&byte)) {
        bail!("a token id is six lower-case letters and digits");
    }
    let path = format!("/api/v1/namespaces/kube-system/secrets/bootstrap-token-{id}");
    match https.send(server, "DELETE", &path, None).await? {
        (200 | 202, _) => Ok(()),
        (404, _) => Err(crate::exit::with(crate::exit::Exit::NotFound, format!("there is no token {id}"))),
        (status, body) => bail!("withdraw the token: {}", message(status, &body)),
    }
}

fn message(status: u16, body: &[u8]) -> String {
    let text =
        serde_json::from_slice::<serde_json::Value>(body).ok().and_then(|s| s["message"].as_str().map(str::to_owned));
    text.unwrap_or_else(|| format!("HTTP {status}"))
}

/// `length` characters of the alphabet from the system's generator, each equally likely.
fn random_text(length: usize) -> Result<String> {
    let random = SystemRandom::new();
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut byte = [0u8];
        random.fill(&mut byte).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        // 252 is the largest multiple of 36 a byte can hold; what lies above would favour some characters.
        if byte[0] < 252 {
            text.push(char::from(ALPHABET[usize::from(byte[0]) % ALPHABET.len()]));
        }
    }
    Ok(text)
}
