//! Reads what the machine is and has. What cannot be read is left empty: a node with an unknown OS name still runs pods.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;

/// Facts that do not change while the agent runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// Whole CPUs.
    pub cpus: usize,
    /// Bytes.
    pub memory: u64,
    /// Bytes of the file system the pods' data is on.
    pub storage: u64,
    pub info: NodeSystemInfo,
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

/// Bytes of `MemTotal` in the text of /proc/meminfo.
fn memory_total(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        .saturating_mul(1024)
}

/// `PRETTY_NAME` in the text of /etc/os-release.
fn os_name(release: &str) -> String {
    let line = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.unwrap_or_default().trim_matches('"').to_owned()
}

impl Machine {
    /// Reads the running machine; `data_dir` names the file system of the pods' data.
    pub fn read(data_dir: &Path) -> Self {
        let stats = nix::sys::statvfs::statvfs(data_dir).ok();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let info = NodeSystemInfo {
            architecture: architecture.to_owned(),
            boot_id: first_line("/proc/sys/kernel/random/boot_id"),
            kernel_version: first_line("/proc/sys/kernel/osrelease"),
            kubelet_version: format!("v1.36.0+pintle{}", env!("CARGO_PKG_VERSION")),
            machine_id: first_line("/etc/machine-id"),
            operating_system: "linux".to_owned(),
            os_image: os_name(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            system_uuid: first_line("/sys/class/dmi/id/product_uuid"),
            ..NodeSystemInfo::default()
        };
        Self {
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory: memory_total(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            storage: stats.map_or(0, |stats| stats.blocks().saturating_mul(stats.fragment_size())),
            info,
        }
    }

    /// What the node has, with amounts given by the operator in place of the machine's own.
    pub fn capacity(&self, max_pods: usize, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let own = [
            ("cpu", self.cpus.to_string()),
            ("memory", format!("{}Ki", self.memory / 1024)),
            ("ephemeral-storage", format!("{}Ki", self.storage / 1024)),
            ("pods", max_pods.to_string()),
        ];
        let mut capacity: BTreeMap<String, String> =
            own.into_iter().map(|(name, amount)| (name.to_owned(), amount)).collect();
        capacity.extend(given.clone());
        capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel() {
        assert_eq!(memory_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), 2 << 20);
        assert_eq!(memory_total("MemTotal: x"), 0);
        assert_eq!(
            os_name("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        let machine = Machine::read(Path::new("/"));
        assert!(
            machine.cpus > 0 && machine.memory > 0 && machine.storage > 0 && !machine.info.kernel_version.is_empty()
        );
        let given = BTreeMap::from([("cpu".to_owned(), "64".to_owned())]);
        assert_eq!(machine.capacity(110, &given)["cpu"], "64");
    }
}
