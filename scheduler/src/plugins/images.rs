//! Prefers nodes that have the pod's images already, the more so the larger they are and the more widely they are spread:
//! otherwise one node with an image would draw every pod that uses it.

use crate::framework::{CycleState, Plugin, Score};
use crate::limits::{IMAGE_MAX_PER_CONTAINER, IMAGE_MIN, MAX_SCORE};
use crate::state::{NodeInfo, PodInfo, Snapshot};

pub struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }
}

impl Score for ImageLocality {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> i64 {
        let nodes = snapshot.nodes.len().max(1) as f64;
        let sizes = pod.images.iter().filter_map(|image| {
            let name = with_tag(image);
            let size = *node.images.get(&name)?;
            let spread = snapshot.image_nodes.get(&name).copied().unwrap_or(0) as f64 / nodes;
            Some((size as f64 * spread) as i64)
        });
        let total = sizes.fold(0, i64::saturating_add);
        let most = IMAGE_MAX_PER_CONTAINER.saturating_mul(i64::try_from(pod.images.len().max(1)).unwrap_or(i64::MAX));
        MAX_SCORE * (total.clamp(IMAGE_MIN, most) - IMAGE_MIN) / (most - IMAGE_MIN)
    }
}

/// The image's name with `:latest` if it has neither tag nor digest.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}
