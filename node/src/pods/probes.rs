//! Probes: one task per probe of a running container. A task counts successes and failures and tells transitions.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPHeader, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use pintle_base::clock;
use pintle_client::remote::unverified::AnyServer;
use tokio::net::TcpStream;

use crate::limits;
use crate::runtime::{Runtime, RuntimeError};

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// Where a probe goes.
#[derive(Clone)]
pub struct Target {
    pub runtime: Arc<dyn Runtime>,
    pub container_id: String,
    /// Address of the pod, or of the node for pods on its network.
    pub ip: String,
    pub container: Container,
}

/// A probe's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Success,
    Failure(String),
}

/// How often and how patiently, with Kubernetes' defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub successes: i32,
    pub failures: i32,
}

impl Pace {
    pub fn of(probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
        };
        Self {
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: probe.success_threshold.unwrap_or(1).max(1),
            failures: probe.failure_threshold.unwrap_or(3).max(1),
        }
    }
}

/// Counts answers; says when the result changes. Pure.
#[derive(Debug)]
pub struct Counter {
    pace: Pace,
    last: Option<bool>,
    run: i32,
}

impl Counter {
    pub fn new(pace: Pace) -> Self {
        Self { pace, last: None, run: 0 }
    }

    /// Takes an answer; `Some(result)` once enough equal ones came in a row.
    pub fn take(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            (self.last, self.run) = (Some(success), 1);
        }
        let needed = if success { self.pace.successes } else { self.pace.failures };
        (self.run >= needed).then_some(success)
    }
}

/// Probes once.
pub async fn ask(probe: &Probe, target: &Target, timeout: Duration) -> Answer {
    match clock::timeout(timeout + Duration::from_millis(500), try_ask(probe, target, timeout)).await {
        Ok(Ok(())) => Answer::Success,
        Ok(Err(text)) => Answer::Failure(text),
        Err(_) => Answer::Failure(format!("probe did not answer within {timeout:?}")),
    }
}

async fn try_ask(probe: &Probe, target: &Target, timeout: Duration) -> Result<(), String> {
    if let Some(exec) = &probe.exec {
        return exec_probe(exec.command.as_deref().unwrap_or_default(), target, timeout).await;
    }
    if !target.runtime.is_real() {
        return Ok(()); // nothing listens behind a simulated address
    }
    if let Some(get) = &probe.http_get {
        let port = port(&get.port, &target.container).ok_or("port not found in the container")?;
        let host = get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&target.ip);
        let https = get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        let path = get.path.as_deref().unwrap_or("/");
        let headers = get.http_headers.as_deref().unwrap_or_default();
        return clock::timeout(timeout, http_get(host, port, path, https, headers))
            .await
            .map_err(|_| exceeded(host, port, path))?;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let port = port(&tcp.port, &target.container).ok_or("port not found in the container")?;
        let host = tcp.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&target.ip);
        return tcp_probe(host, port, timeout).await;
    }
    if let Some(grpc) = &probe.grpc {
        let port = u16::try_from(grpc.port).map_err(|_| "port out of range")?;
        return grpc_probe(&target.ip, port, grpc.service.clone().unwrap_or_default(), timeout).await;
    }
    Ok(())
}

fn exceeded(host: &str, port: u16, path: &str) -> String {
    format!(
        "Get \"http://{host}:{port}{path}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
    )
}

async fn exec_probe(command: &[String], target: &Target, timeout: Duration) -> Result<(), String> {
    match target.runtime.run_command(&target.container_id, command, timeout).await {
        Ok(output) if output.exit_code == 0 => Ok(()),
        Ok(output) => {
            let text = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
            Err(String::from_utf8_lossy(&text[..text.len().min(limits::PROBE_OUTPUT)]).into_owned())
        }
        Err(RuntimeError::Deadline { .. }) => Err(format!("command {command:?} timed out")),
        Err(error) => Err(error.to_string()),
    }
}

async fn tcp_probe(host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    match clock::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("dial tcp {host}:{port}: connect: {error}")),
        Err(_) => Err(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

async fn grpc_probe(ip: &str, port: u16, service: String, timeout: Duration) -> Result<(), String> {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|error| error.to_string())?;
    let channel = endpoint.connect_timeout(timeout).timeout(timeout).connect().await;
    let channel = channel.map_err(|error| format!("error: failed to connect service \"{host}:{port}\": {error}"))?;
    let failed = |text: &str| format!("error: health rpc failed: {text}");
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| failed(&error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let answer = client.unary(tonic::Request::new(HealthCheckRequest { service }), path, codec).await;
    match answer.map_err(|status| failed(status.message()))?.into_inner().status {
        SERVING => Ok(()),
        status => Err(format!("service unhealthy (responded with {status})")),
    }
}

/// `SERVING` of the published health protocol, whose two messages are small enough to stand here.
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// A port by number or by the container's name for it.
pub fn port(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name))?.container_port,
        },
    };
    u16::try_from(number).ok().filter(|port| *port > 0)
}

/// GETs like a probe: redirects within the host are followed, certificates are not checked, 200-399 is success.
pub async fn http_get(host: &str, port: u16, path: &str, https: bool, headers: &[HTTPHeader]) -> Result<(), String> {
    let (mut port, mut https) = (port, https);
    let mut path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    for _ in 0..limits::PROBE_REDIRECTS {
        let (status, location) = get_once(host, port, &path, https, headers).await?;
        let Some(location) = location.filter(|_| (300..400).contains(&status)) else {
            return if (200..400).contains(&status) {
                Ok(())
            } else {
                Err(format!("HTTP probe failed with statuscode: {status}"))
            };
        };
        let Ok(uri) = location.parse::<http::Uri>() else { return Ok(()) };
        match uri.host() {
            // Another host answers for itself, not for this container: the redirect alone is a sign of life.
            Some(other) if other != host => return Ok(()),
            Some(_) => {
                https = uri.scheme_str() == Some("https");
                port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
            }
            None => (),
        }
        path = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    }
    Err(format!("stopped after {} redirects", limits::PROBE_REDIRECTS))
}

async fn get_once(
    host: &str,
    port: u16,
    path: &str,
    https: bool,
    headers: &[HTTPHeader],
) -> Result<(u16, Option<String>), String> {
    let scheme = if https { "https" } else { "http" };
    let shown = if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) { format!("[{host}]") } else { host.to_owned() };
    let failed = |what: &dyn std::fmt::Display| format!("Get \"{scheme}://{shown}:{port}{path}\": {what}");
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| failed(&format!("dial tcp {shown}:{port}: connect: {error}")))?;
    let mut request = http::Request::get(path).header("Connection", "close");
    let own = |name: &str| headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if !own("host") {
        request = request.header("Host", format!("{shown}:{port}"));
    }
    if !own("user-agent") {
        request = request.header("User-Agent", "kube-probe/1.36");
    }
    for header in headers {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
    if https {
        let connector = tokio_rustls::TlsConnector::from(unchecked().map_err(|error| failed(&error))?);
        let name = rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(|error| failed(&error))?;
        let stream = connector.connect(name, stream).await.map_err(|error| failed(&error))?;
        exchange(TokioIo::new(stream), request).await.map_err(|error| failed(&error))
    } else {
        exchange(TokioIo::new(stream), request).await.map_err(|error| failed(&error))
    }
}

async fn exchange(
    io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    request: http::Request<Empty<Bytes>>,
) -> Result<(u16, Option<String>), hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let location =
            response.headers().get(http::header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut taken = 0;
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, Bytes::len);
            if taken > limits::PROBE_BODY {
                break;
            }
        }
        Ok((status, location))
    };
    tokio::pin!(connection, exchange);
    let mut open = true;
    loop {
        tokio::select! {
            result = &mut exchange => return result,
            _ = &mut connection, if open => open = false, // the answer, or its error, is in the other future
        }
    }
}

/// TLS for probes: kubelet's probes do not verify certificates, they only ask whether something answers.
fn unchecked() -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let anybody = AnyServer::verifier(&provider);
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn results_change_after_enough_equal_answers() {
        let probe: Probe =
            serde_json::from_value(json!({ "failureThreshold": 2, "successThreshold": 2 })).expect("probe");
        let mut counter = Counter::new(Pace::of(&probe));
        let results: Vec<_> =
            [true, true, false, true, false, false].into_iter().map(|answer| counter.take(answer)).collect();
        assert_eq!(results, [None, Some(true), None, None, None, Some(false)]);
    }

    #[test]
    fn ports_by_number_and_name() {
        let container: Container =
            serde_json::from_value(json!({ "name": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }))
                .expect("container");
        let of = |text: &str| port(&IntOrString::String(text.into()), &container);
        assert_eq!(
            (of("http"), of("81"), of("x"), port(&IntOrString::Int(70_000), &container)),
            (Some(8080), Some(81), None, None)
        );
    }

    #[tokio::test]
    async fn a_port_that_listens_is_alive() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let limit = Duration::from_secs(10);
        assert_eq!(tcp_probe("127.0.0.1", port, limit).await, Ok(()), "nothing needs to be said");
        drop(listener);
        let text = tcp_probe("127.0.0.1", port, limit).await.expect_err("refused");
        assert!(text.starts_with(&format!("dial tcp 127.0.0.1:{port}: connect: ")), "{text}");
    }

    async fn server(answers: Vec<&'static str>) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut head = [0; 1024];
                assert_ne!(stream.read(&mut head).await.expect("read"), 0, "a request came");
                stream.write_all(answer.as_bytes()).await.expect("write");
            }
        });
        port
    }

    #[tokio::test]
    async fn http_answers() {
        let ok = server(vec!["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]).await;
        assert_eq!(http_get("127.0.0.1", ok, "/", false, &[]).await, Ok(()));
        let bad = server(vec!["HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"]).await;
        assert_eq!(
            http_get("127.0.0.1", bad, "x", false, &[]).await,
            Err("HTTP probe failed with statuscode: 503".into())
        );
        let moved = server(vec![
            "HTTP/1.1 302 F\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 404 N\r\nContent-Length: 0\r\n\r\n",
        ])
        .await;
        assert_eq!(
            http_get("127.0.0.1", moved, "/", false, &[]).await,
            Err("HTTP probe failed with statuscode: 404".into())
        );
        let nonsense = server(vec!["garbage\r\n\r\n"]).await;
        assert!(http_get("127.0.0.1", nonsense, "/", false, &[]).await.is_err());
    }
}
