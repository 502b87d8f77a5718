//! Credentials as the API defines them: what they look like, what they claim, and how they are signed.
//!
//! Shared by the API server, which hands out and checks them, and by the controllers that fill and clean Secrets. Whether
//! what a token names still lives is asked by whoever can see the cluster.

pub mod bootstrap;
pub mod jwt;
pub mod legacy;

/// User name of a service account.
pub fn account_user(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// Namespace and name of a service account's user name.
pub fn account_of(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_names_are_parsed_strictly() {
        assert_eq!(account_of("system:serviceaccount:a:b"), Some(("a", "b")));
        for bad in ["system:serviceaccount:a", "system:serviceaccount::b", "system:serviceaccount:a:b:c", "a:b", ""] {
            assert_eq!(account_of(bad), None, "{bad}");
        }
    }
}
