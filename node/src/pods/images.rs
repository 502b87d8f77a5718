//! Gets a container's image onto this node, by the pull policy of its spec.

use k8s_openapi::api::core::v1::{Container, Pod};
use pintle_client::object::reference;
use pintle_proto::cri_v1 as api;
use serde_json::Value;

use super::Context;
use super::env::Sources;
use super::references::Loaded;
use super::resources::is_init;
use crate::runtime::RuntimeError;

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageHere {
    /// How CRI is told which image to run.
    pub reference: String,
    /// The user it names; 0 where it names none or only by name.
    pub uid: i64,
}

/// Reason and message of a waiting container.
pub type Trouble = (&'static str, String);

pub async fn ensure(
    context: &Context,
    pod: &Pod,
    container: &Container,
    loaded: &Loaded,
) -> Result<ImageHere, Trouble> {
    let name = container.image.clone().unwrap_or_default();
    if name.is_empty() || name.len() > 1024 || name.contains(char::is_whitespace) {
        return Err((
            "InvalidImageName",
            format!("Failed to apply default image tag \"{name}\": couldn't parse image name"),
        ));
    }
    let policy = container.image_pull_policy.as_deref().unwrap_or(default_policy(&name));
    let unavailable =
        |error: RuntimeError| ("ImageInspectError", format!("Failed to inspect image \"{name}\": {error}"));
    let present = context.runtime.image(&name).await.map_err(unavailable)?;
    match (policy, present) {
        ("Never", None) => {
            Err(("ErrImageNeverPull", format!("Container image \"{name}\" is not present with pull policy of Never")))
        }
        ("Never" | "IfNotPresent", Some(image)) => {
            let text = format!("Container image \"{name}\" already present on machine");
            context.recorder.normal(about(pod, container), "Pulled", text);
            Ok(here(&name, &image))
        }
        _ => pull(context, pod, container, &name, loaded).await,
    }
}

async fn pull(
    context: &Context,
    pod: &Pod,
    container: &Container,
    name: &str,
    loaded: &Loaded,
) -> Result<ImageHere, Trouble> {
    let started = pintle_base::clock::now();
    context.recorder.normal(about(pod, container), "Pulling", format!("Pulling image \"{name}\""));
    let auth = credentials(pod, name, loaded);
    if let Err(error) = context.runtime.pull(name, auth).await {
        let text = format!("failed to pull image \"{name}\": {error}");
        context.recorder.warning(about(pod, container), "Failed", format!("Failed to pull image \"{name}\": {error}"));
        return Err(("ErrImagePull", text));
    }
    let text = format!("Successfully pulled image \"{name}\" in {:.3}s", started.elapsed().as_secs_f64());
    context.recorder.normal(about(pod, container), "Pulled", text);
    match context.runtime.image(name).await {
        Ok(Some(image)) => Ok(here(name, &image)),
        Ok(None) => Err(("ErrImagePull", format!("image \"{name}\" is absent after it was pulled"))),
        Err(error) => Err(("ImageInspectError", error.to_string())),
    }
}

/// The pod, with the container as the field an event is about.
pub fn about(pod: &Pod, container: &Container) -> k8s_openapi::api::core::v1::ObjectReference {
    let list = if is_init(pod, container) { "initContainers" } else { "containers" };
    let mut about = reference(pod);
    about.field_path = Some(format!("spec.{list}{{{}}}", container.name));
    about
}

fn here(name: &str, image: &api::Image) -> ImageHere {
    let uid = image.uid.as_ref().map_or(0, |uid| uid.value);
    ImageHere { reference: if image.id.is_empty() { name.to_owned() } else { image.id.clone() }, uid }
}

/// `Always` for the tag `latest`, as the API defaults it.
fn default_policy(name: &str) -> &'static str {
    let last = name.rsplit('/').next().unwrap_or_default();
    let tag = last.split_once('@').map_or_else(|| last.split_once(':').map_or("latest", |(_, tag)| tag), |_| "digest");
    if tag == "latest" { "Always" } else { "IfNotPresent" }
}

/// The registry an image comes from.
fn registry(name: &str) -> &str {
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// The first login for the image's registry among the pod's pull secrets.
fn credentials(pod: &Pod, name: &str, loaded: &Loaded) -> Option<api::AuthConfig> {
    let secrets = pod.spec.as_ref()?.image_pull_secrets.as_ref()?;
    secrets
        .iter()
        .filter_map(|secret| loaded.secret(&secret.name)?.get(".dockerconfigjson"))
        .find_map(|text| login(text, registry(name)))
}

fn login(config: &[u8], registry: &str) -> Option<api::AuthConfig> {
    let config: Value = serde_json::from_slice(config).ok()?;
    let plain = |host: &str| {
        let host = host.trim_start_matches("https://").trim_start_matches("http://");
        host.split('/').next().unwrap_or_default().replace("index.docker.io", "docker.io")
    };
    let (host, entry) = config.get("auths")?.as_object()?.iter().find(|(host, _)| plain(host) == registry)?;
    let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(api::AuthConfig {
        username: text("username"),
        password: text("password"),
        auth: text("auth"),
        server_address: host.clone(),
        identity_token: text("identitytoken"),
        registry_token: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_policies_and_logins() {
        assert_eq!(
            (registry("busybox"), registry("library/busybox"), registry("r.example:5000/a")),
            ("docker.io", "docker.io", "r.example:5000")
        );
        assert_eq!(
            (default_policy("busybox"), default_policy("r:5000/a:1"), default_policy("a@sha256:0")),
            ("Always", "IfNotPresent", "IfNotPresent")
        );
        let config =
            br#"{"auths":{"https://index.docker.io/v1/":{"auth":"x"},"r.example":{"username":"u","password":"p"}}}"#;
        assert_eq!(login(config, "docker.io").expect("login").auth, "x");
        assert_eq!(login(config, "r.example").expect("login").username, "u");
        assert!(login(config, "other").is_none() && login(b"[", "docker.io").is_none());
    }
}
