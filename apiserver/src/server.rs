//! The API server as one value: made from a store, started in a task group, served over TLS or called in-process.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use pintle_base::task::Group;
use pintle_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::bootstrap::BuildError;
use crate::cache::{self, Cache};
use crate::handlers::{Handler, Identity};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::throttle::Throttle;
use crate::types::{Body, Config, Ctx, Hooks, UserInfo};
use crate::{bootstrap, discovery, edge, limits};

/// Cheap to clone; clones are the same server.
#[derive(Clone)]
pub struct ApiServer {
    handler: Arc<Handler>,
}

impl ApiServer {
    /// A server over `store` with authentication, authorization and admission in place. Call [`ApiServer::start`] next.
    ///
    /// # Errors
    /// [`BuildError`] if keys or address ranges of the configuration cannot be used.
    pub fn new(config: Config, store: Store) -> Result<Self, BuildError> {
        let server = Self::bare(config, store);
        let hooks = bootstrap::hooks(&server.handler.ctx)?;
        server.handler.ctx.registry.install(hooks);
        Ok(server)
    }

    /// A server with other hooks, for tests of the parts below them.
    pub fn with_hooks(config: Config, store: Store, hooks: Hooks) -> Self {
        let server = Self::bare(config, store);
        server.handler.ctx.registry.install(hooks);
        server
    }

    fn bare(config: Config, store: Store) -> Self {
        let cache = Arc::new(Cache::default());
        let registry = Registry::new(store.clone(), Arc::clone(&cache));
        let ctx = Arc::new(Ctx { config, store, cache, registry });
        let handler = Handler {
            ctx,
            metrics: Metrics::default(),
            throttle: Throttle::default(),
            discovery: discovery::Documents::default(),
            stop: CancellationToken::new(),
        };
        Self { handler: Arc::new(handler) }
    }

    /// Starts what runs beside requests: the watch cache and the reconcilers of the auth half.
    pub fn start(&self, group: &Group) {
        self.start_cache(group);
        bootstrap::start(&self.handler.ctx, group);
    }

    /// Starts the watch cache only.
    pub fn start_cache(&self, group: &Group) {
        let ctx = &self.handler.ctx;
        let (cache, store) = (Arc::clone(&ctx.cache), ctx.store.clone());
        group.spawn("watch-cache", cache::feed::run(cache, store, limits::HISTORY_REVISIONS, group.token()));
        let (stop, stopping) = (self.handler.stop.clone(), group.token());
        group.spawn("drain", async move {
            stopping.cancelled().await;
            stop.cancel();
        });
    }

    /// Serves `listener` until the group of [`ApiServer::start`] stops, then drains.
    ///
    /// # Errors
    /// If the listener breaks.
    pub async fn serve(&self, listener: TcpListener, tls: edge::Tls) -> io::Result<()> {
        edge::serve(Arc::clone(&self.handler), listener, tls, self.handler.stop.clone()).await
    }

    /// Like [`ApiServer::serve`], with less patience.
    #[cfg(test)]
    pub(crate) async fn serve_within(
        &self,
        deadlines: edge::Deadlines,
        listener: TcpListener,
        tls: edge::Tls,
    ) -> io::Result<()> {
        let stop = self.handler.stop.clone();
        edge::serve_within(deadlines, Arc::clone(&self.handler), listener, tls, stop).await
    }

    /// A service for callers in this process, who act as `user`. No sockets; watches stream.
    pub fn local(&self, user: UserInfo) -> Local {
        Local { handler: Arc::clone(&self.handler), user }
    }

    /// The shared state, for what `cmd` wires beside the server.
    pub fn ctx(&self) -> &Arc<Ctx> {
        &self.handler.ctx
    }
}

/// An in-process client's side of the server. Authorization and admission apply as to everybody.
#[derive(Clone)]
pub struct Local {
    handler: Arc<Handler>,
    user: UserInfo,
}

impl<B> tower::Service<http::Request<B>> for Local
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Identity(self.user.clone()));
        let handler = Arc::clone(&self.handler);
        Box::pin(async move { Ok(handler.handle(request).await) })
    }
}
