//! Lifecycle hooks: what runs right after a container's start and right before its end.

use std::time::Duration;

use k8s_openapi::api::core::v1::LifecycleHandler;
use pintle_base::clock;
use tokio::net::TcpStream;

use super::probes::{self, Target};

/// Runs a hook to its end, at most `limit` long. The text says why it failed.
pub async fn run(handler: &LifecycleHandler, target: &Target, limit: Duration) -> Result<(), String> {
    match clock::timeout(limit, try_run(handler, target, limit)).await {
        Ok(result) => result,
        Err(_) => Err(format!("hook did not end within {limit:?}")),
    }
}

async fn try_run(handler: &LifecycleHandler, target: &Target, limit: Duration) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let output = target
            .runtime
            .run_command(&target.container_id, &command, limit)
            .await
            .map_err(|error| error.to_string())?;
        return match output.exit_code {
            0 => Ok(()),
            code => Err(format!("command {command:?} exited with {code}: {}", String::from_utf8_lossy(&output.stderr))),
        };
    }
    if let Some(sleep) = &handler.sleep {
        clock::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    if !target.runtime.is_real() {
        return Ok(());
    }
    if let Some(get) = &handler.http_get {
        let port = probes::port(&get.port, &target.container).ok_or("port not found in the container")?;
        let host = get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&target.ip);
        let https = get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        let headers = get.http_headers.as_deref().unwrap_or_default();
        return probes::http_get(host, port, get.path.as_deref().unwrap_or("/"), https, headers).await;
    }
    if let Some(tcp) = &handler.tcp_socket {
        let port = probes::port(&tcp.port, &target.container).ok_or("port not found in the container")?;
        let host = tcp.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&target.ip);
        return TcpStream::connect((host, port)).await.map(|_| ()).map_err(|error| error.to_string());
    }
    Ok(())
}
