//! The CNI configuration of this node: a bridge, addresses from the node's range, host ports.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::json;

const FILE: &str = "10-pintle.conflist";

/// The configuration's text. Address records are kept below the node's own data directory: several nodes may share a
/// file system.
fn configuration(data_dir: &Path, bridge: &str, cidr: &str) -> String {
    let conf = json!({
        "cniVersion": "0.4.0",
        "name": "pintle",
        "plugins": [
            {
                "type": "bridge", "bridge": bridge, "isGateway": true, "hairpinMode": true, "ipMasq": false, "forceAddress": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": data_dir.join("cni-addresses"),
                    "ranges": [[{ "subnet": cidr }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    format!("{conf:#}\n")
}

/// Writes the configuration so that a reader sees the old or the new one.
pub fn write(conf_dir: &Path, data_dir: &Path, bridge: &str, cidr: &str) -> io::Result<()> {
    let text = configuration(data_dir, bridge, cidr);
    let path = conf_dir.join(FILE);
    if fs::read_to_string(&path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    fs::create_dir_all(conf_dir)?;
    // The suffix keeps a runtime that watches the directory from reading the half-written file.
    let partial = conf_dir.join(format!(".{FILE}.partial"));
    fs::write(&partial, text)?;
    fs::rename(partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_json_with_the_nodes_range() {
        let dir = tempfile::tempdir().expect("directory");
        write(dir.path(), Path::new("/data"), "br0", "10.244.3.0/24").expect("write");
        let text = fs::read_to_string(dir.path().join(FILE)).expect("read");
        let conf: serde_json::Value = serde_json::from_str(&text).expect("json");
        assert_eq!(conf["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.3.0/24");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }
}
