//! NamespaceLifecycle: nothing is created where there is no namespace, or in one that is being emptied; three namespaces
//! cannot be deleted.

use bytes::Bytes;
use pintle_api::status::{Cause, Status};

use super::{Chain, forbidden};
use crate::authz::live::{NAMESPACES, get_or_fresh, is_terminating, text};
use crate::cache::layout;
use crate::types::{Extra, Operation, Review};

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub(super) async fn admit(chain: &Chain, review: &mut Review<'_>) -> Result<(), Status> {
    let is_namespace = review.kind.group.is_empty() && review.kind.resource == "namespaces";
    match review.operation {
        Operation::Delete if is_namespace && IMMORTAL.contains(&review.name) => {
            Err(forbidden(review, "this namespace may not be deleted"))
        }
        Operation::Create if !is_namespace && review.kind.namespaced => into_live_namespace(chain, review).await,
        _ => Ok(()),
    }
}

/// The namespace must live, and the write is refused if it is not the one seen here any more: this server's cache may be behind,
/// and the namespace be gone by now.
async fn into_live_namespace(chain: &Chain, review: &mut Review<'_>) -> Result<(), Status> {
    let name = review.namespace;
    let namespace = match review.attempt {
        0 => get_or_fresh(&*chain.live, NAMESPACES, "", name).await,
        // Without an answer of the store the cache's word stands: the write itself tells whether it is true.
        _ => chain.live.fresh(NAMESPACES, "", name).await.or_else(|| chain.live.get(NAMESPACES, "", name)),
    };
    let namespace = namespace.ok_or_else(|| Status::not_found("", "namespaces", name))?;
    if !is_terminating(&namespace) && text(&namespace, "/status/phase") != "Terminating" {
        if let (Some(kind), Ok(revision)) = (NAMESPACES.kind(), text(&namespace, "/metadata/resourceVersion").parse()) {
            let key = Bytes::from(layout::store_key(kind, "", name));
            review.extra.push(Extra::Unchanged { key, revision });
        }
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {name} because it is being terminated");
    let mut status = forbidden(review, &why);
    status.details.get_or_insert_default().causes.push(Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {name} is being terminated"),
        field: "metadata.namespace".into(),
    });
    Err(status)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{chain, create, creation, kind};
    use crate::authz::live::NAMESPACES;
    use crate::authz::live::tests::Fixed;
    use crate::types::{Admit, Operation, UserInfo};

    fn config(namespace: &str) -> Value {
        json!({"metadata": {"namespace": namespace, "name": "c"}})
    }

    fn live() -> Fixed {
        Fixed::default().with(NAMESPACES, json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}})).with(
            NAMESPACES,
            json!({"metadata": {"name": "dying", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Terminating"}}),
        )
    }

    #[tokio::test]
    async fn objects_need_a_live_namespace() {
        let kind = kind("", "configmaps");
        assert!(create(live(), kind, config("a")).await.is_ok());
        let missing = create(live(), kind, config("none")).await.expect_err("missing");
        assert_eq!((missing.http_code(), missing.message.as_str()), (404, r#"namespaces "none" not found"#));
        let dying = create(live(), kind, config("dying")).await.expect_err("terminating");
        assert_eq!(
            dying.message,
            r#"configmaps "c" is forbidden: unable to create new content in namespace dying because it is being terminated"#
        );
        assert_eq!(dying.details.expect("details").causes[0].reason, "NamespaceTerminating");
    }

    #[tokio::test]
    async fn system_namespaces_stay() {
        let user = UserInfo::internal();
        for (name, want) in
            [("default", false), ("kube-system", false), ("kube-public", false), ("kube-node-lease", true)]
        {
            let object = json!({"metadata": {"name": name}});
            let mut review = creation(kind("", "namespaces"), &object, &user);
            review.operation = Operation::Delete;
            assert_eq!(chain(live()).mutate(&mut review).await.is_ok(), want, "{name}");
        }
    }
}
