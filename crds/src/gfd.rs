//! Names and forms of the labels of NVIDIA's GPU feature discovery (GFD), as far as they are read or written here. Pure.
//!
//! Inputs: names of products. Outputs: values of labels.
//! The names and forms: NVIDIA/k8s-device-plugin, internal/lm (nvml.go, resource.go) and docs/gpu-feature-discovery.

/// When GFD wrote its labels; only GFD writes it.
pub const TIMESTAMP: &str = "nvidia.com/gfd.timestamp";
/// Number of GPUs.
pub const COUNT: &str = "nvidia.com/gpu.count";
/// Name of the product, as [`product`] gives it.
pub const PRODUCT: &str = "nvidia.com/gpu.product";
/// Memory of a GPU, MiB.
pub const MEMORY: &str = "nvidia.com/gpu.memory";
/// What GFD puts behind the product while its GPUs are shared by time.
pub const SHARED: &str = "-SHARED";

/// The name of a product as a label has it: what a label cannot hold is left out, spaces are dashes.
pub fn product(name: &str) -> String {
    let fits = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    let kept: String = name.chars().filter(fits).collect();
    kept.split_whitespace().collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    #[test]
    fn products_fit_into_labels() {
        for (name, label) in [
            ("NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3"),
            ("Tesla  T4 (x16)", "Tesla-T4-x16"),
            ("", ""),
        ] {
            assert_eq!(super::product(name), label);
        }
    }
}
