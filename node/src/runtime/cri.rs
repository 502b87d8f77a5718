//! CRI v1 over a Unix socket.
//!
//! The connection is made lazily and remade by itself, so the agent starts before, and survives, its runtime.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use pintle_base::clock;
use pintle_proto::cri_v1 as api;
use pintle_proto::cri_v1::image_service_client::ImageServiceClient;
use pintle_proto::cri_v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

use super::{CommandOutput, Interactive, Runtime, RuntimeError, Sandbox, Wanted, label, spdy};
use crate::limits;

/// containerd, CRI-O or anything else that serves CRI v1. Cheap to clone.
#[derive(Clone)]
pub struct CriRuntime {
    socket: PathBuf,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl CriRuntime {
    /// Does not connect yet; must be called inside a tokio runtime.
    pub fn new(socket: &Path) -> Self {
        let place = socket.to_path_buf();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = place.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is only a name here: the connector above decides where bytes go.
        let channel = Endpoint::from_static("http://runtime.local").connect_with_connector_lazy(connector);
        let limit = limits::RUNTIME_MESSAGE;
        Self {
            socket: socket.to_path_buf(),
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(limit),
            images: ImageServiceClient::new(channel).max_decoding_message_size(limit),
        }
    }
}

/// Awaits one call under its deadline and names it in errors.
async fn call<T>(
    name: &'static str,
    limit: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send,
) -> Result<T, RuntimeError> {
    match clock::timeout(limit, answer).await {
        Err(_) => Err(RuntimeError::Deadline { call: name, limit }),
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => {
            let message = status.message().to_owned();
            Err(match status.code() {
                tonic::Code::NotFound => RuntimeError::NotFound { call: name, message },
                tonic::Code::Unavailable => RuntimeError::Unavailable { call: name, message },
                _ => RuntimeError::Refused { call: name, message },
            })
        }
    }
}

/// Removing what is already gone is success: the runtime's state is what counts.
fn gone_is_fine(result: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

fn of_pod(pod_uid: Option<&str>) -> HashMap<String, String> {
    pod_uid.map(|uid| (label::POD_UID.to_owned(), uid.to_owned())).into_iter().collect()
}

/// The network namespace from the verbose sandbox information: a JSON text with the OCI specification in it.
fn namespace_path(info: &HashMap<String, String>) -> Option<PathBuf> {
    let info: serde_json::Value = serde_json::from_str(info.get("info")?).ok()?;
    info.pointer("/runtimeSpec/linux/namespaces")?
        .as_array()?
        .iter()
        .find(|namespace| namespace["type"] == "network")
        .and_then(|namespace| namespace["path"].as_str())
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

#[async_trait]
impl Runtime for CriRuntime {
    async fn version(&self) -> Result<String, RuntimeError> {
        let request = api::VersionRequest { version: "v1".to_owned() };
        let answer = call("Version", limits::RUNTIME_CALL, self.runtime.clone().version(request)).await?;
        Ok(format!("{}://{}", answer.runtime_name, answer.runtime_version))
    }

    fn is_real(&self) -> bool {
        true
    }

    fn endpoint(&self) -> String {
        self.socket.display().to_string()
    }

    async fn conditions(&self) -> Result<Vec<api::RuntimeCondition>, RuntimeError> {
        let request = api::StatusRequest { verbose: false };
        let answer = call("Status", limits::RUNTIME_CALL, self.runtime.clone().status(request)).await?;
        Ok(answer.status.unwrap_or_default().conditions)
    }

    async fn run_sandbox(&self, config: api::PodSandboxConfig) -> Result<String, RuntimeError> {
        let request = api::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let mut client = self.runtime.clone();
        let answer = call("RunPodSandbox", limits::RUNTIME_SANDBOX_CALL, client.run_pod_sandbox(request)).await?;
        Ok(answer.pod_sandbox_id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let request = api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let mut client = self.runtime.clone();
        let answer = call("StopPodSandbox", limits::RUNTIME_SANDBOX_CALL, client.stop_pod_sandbox(request)).await;
        gone_is_fine(answer.map(|_| ()))
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let mut client = self.runtime.clone();
        let answer = call("RemovePodSandbox", limits::RUNTIME_SANDBOX_CALL, client.remove_pod_sandbox(request)).await;
        gone_is_fine(answer.map(|_| ()))
    }

    async fn sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<api::PodSandbox>, RuntimeError> {
        let filter = api::PodSandboxFilter { label_selector: of_pod(pod_uid), ..Default::default() };
        let request = api::ListPodSandboxRequest { filter: Some(filter) };
        let answer =
            call("ListPodSandbox", limits::RUNTIME_CALL, self.runtime.clone().list_pod_sandbox(request)).await?;
        Ok(answer.items)
    }

    async fn sandbox(&self, id: &str) -> Result<Sandbox, RuntimeError> {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let mut client = self.runtime.clone();
        let answer = call("PodSandboxStatus", limits::RUNTIME_CALL, client.pod_sandbox_status(request)).await?;
        let network_namespace = namespace_path(&answer.info);
        let status = answer.status.ok_or(RuntimeError::Incomplete { call: "PodSandboxStatus", field: "status" })?;
        Ok(Sandbox { status, network_namespace })
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: api::ContainerConfig,
        sandbox: api::PodSandboxConfig,
    ) -> Result<String, RuntimeError> {
        let request = api::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let mut client = self.runtime.clone();
        let answer = call("CreateContainer", limits::RUNTIME_SANDBOX_CALL, client.create_container(request)).await?;
        Ok(answer.container_id)
    }

    async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = api::StartContainerRequest { container_id: id.to_owned() };
        let mut client = self.runtime.clone();
        call("StartContainer", limits::RUNTIME_SANDBOX_CALL, client.start_container(request)).await.map(|_| ())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = api::StopContainerRequest { container_id: id.to_owned(), timeout };
        let mut client = self.runtime.clone();
        let limit = grace.saturating_add(limits::RUNTIME_CALL);
        gone_is_fine(call("StopContainer", limit, client.stop_container(request)).await.map(|_| ()))
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = api::RemoveContainerRequest { container_id: id.to_owned() };
        let mut client = self.runtime.clone();
        let answer = call("RemoveContainer", limits::RUNTIME_CALL, client.remove_container(request)).await;
        gone_is_fine(answer.map(|_| ()))
    }

    async fn containers(&self, pod_uid: Option<&str>) -> Result<Vec<api::Container>, RuntimeError> {
        let filter = api::ContainerFilter { label_selector: of_pod(pod_uid), ..Default::default() };
        let request = api::ListContainersRequest { filter: Some(filter) };
        let answer =
            call("ListContainers", limits::RUNTIME_CALL, self.runtime.clone().list_containers(request)).await?;
        Ok(answer.containers)
    }

    async fn container(&self, id: &str) -> Result<api::ContainerStatus, RuntimeError> {
        let request = api::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let mut client = self.runtime.clone();
        let answer = call("ContainerStatus", limits::RUNTIME_CALL, client.container_status(request)).await?;
        answer.status.ok_or(RuntimeError::Incomplete { call: "ContainerStatus", field: "status" })
    }

    async fn reopen_log(&self, id: &str) -> Result<(), RuntimeError> {
        let request = api::ReopenContainerLogRequest { container_id: id.to_owned() };
        let mut client = self.runtime.clone();
        call("ReopenContainerLog", limits::RUNTIME_CALL, client.reopen_container_log(request)).await.map(|_| ())
    }

    async fn run_command(&self, id: &str, command: &[String], limit: Duration) -> Result<CommandOutput, RuntimeError> {
        let timeout = i64::try_from(limit.as_secs().max(1)).unwrap_or(i64::MAX);
        let request = api::ExecSyncRequest { container_id: id.to_owned(), cmd: command.to_vec(), timeout };
        let mut client = self.runtime.clone();
        // The runtime keeps the deadline itself; ours only guards against a runtime that hangs.
        let guard = limit.saturating_add(limits::RUNTIME_CALL);
        let answer = match call("ExecSync", guard, client.exec_sync(request)).await {
            Err(RuntimeError::Refused { message, .. }) if message.contains("timeout") => {
                return Err(RuntimeError::Deadline { call: "ExecSync", limit });
            }
            other => other?,
        };
        Ok(CommandOutput { stdout: answer.stdout, stderr: answer.stderr, exit_code: answer.exit_code })
    }

    async fn exec(&self, id: &str, command: &[String], wanted: Wanted) -> Result<Interactive, RuntimeError> {
        let request = api::ExecRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            // A terminal has one output: the runtime refuses a separate stderr.
            stderr: wanted.stderr && !wanted.tty,
        };
        let answer = call("Exec", limits::RUNTIME_CALL, self.runtime.clone().exec(request)).await?;
        spdy::open(&answer.url, wanted).await.map_err(RuntimeError::Stream)
    }

    async fn attach(&self, id: &str, wanted: Wanted) -> Result<Interactive, RuntimeError> {
        let request = api::AttachRequest {
            container_id: id.to_owned(),
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr && !wanted.tty,
        };
        let answer = call("Attach", limits::RUNTIME_CALL, self.runtime.clone().attach(request)).await?;
        spdy::open(&answer.url, wanted).await.map_err(RuntimeError::Stream)
    }

    async fn image(&self, name: &str) -> Result<Option<api::Image>, RuntimeError> {
        let image = api::ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = api::ImageStatusRequest { image: Some(image), verbose: false };
        let answer = call("ImageStatus", limits::RUNTIME_CALL, self.images.clone().image_status(request)).await?;
        Ok(answer.image.filter(|image| !image.id.is_empty()))
    }

    async fn pull(&self, name: &str, auth: Option<api::AuthConfig>) -> Result<String, RuntimeError> {
        let image = api::ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = api::PullImageRequest { image: Some(image), auth, sandbox_config: None };
        let answer = call("PullImage", limits::IMAGE_PULL, self.images.clone().pull_image(request)).await?;
        Ok(answer.image_ref)
    }

    async fn images(&self) -> Result<Vec<api::Image>, RuntimeError> {
        let request = api::ListImagesRequest { filter: None };
        let answer = call("ListImages", limits::RUNTIME_CALL, self.images.clone().list_images(request)).await?;
        Ok(answer.images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_namespace_is_read_from_the_verbose_answer() {
        let info = |text: &str| HashMap::from([("info".to_owned(), text.to_owned())]);
        let good = r#"{"runtimeSpec":{"linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/run/ns/a"}]}}}"#;
        assert_eq!(namespace_path(&info(good)), Some(PathBuf::from("/run/ns/a")));
        let host = r#"{"runtimeSpec":{"linux":{"namespaces":[{"type":"network"}]}}}"#;
        assert_eq!(namespace_path(&info(host)), None);
        assert_eq!(namespace_path(&info("[")), None);
    }
}
