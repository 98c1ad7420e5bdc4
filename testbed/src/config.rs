//! The configuration files and command lines of a cluster's components.
//!
//! Pure: builds text from a [`Layout`]; `cluster` writes and runs it. Each setting that is not a default has
//! its reason beside it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::pki::Pki;
use crate::spec::{DNS_ADDRESS, Place, SERVICE_RANGE};

/// Name of the sandbox container's image.
pub const PAUSE_IMAGE: &str = "vendue.local/pause:1";

/// Where one cluster's files are, and where the programs it runs are.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Addresses and names.
    pub place: Place,
    /// The cluster's folder.
    pub folder: PathBuf,
    /// Its certificates.
    pub pki: Pki,
    /// Programs.
    pub bin: Programs,
}

/// Paths of the programs a cluster runs.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// Folder with the Kubernetes programs.
    pub kubernetes: PathBuf,
    /// The etcd program.
    pub etcd: PathBuf,
    /// Folder with containerd, its shim and ctr.
    pub containerd: PathBuf,
    /// Folder with the CNI plugins.
    pub cni: PathBuf,
    /// The CoreDNS program.
    pub coredns: PathBuf,
    /// The pause program.
    pub pause: PathBuf,
    /// The helm program.
    pub helm: PathBuf,
    /// The kubectl program.
    pub kubectl: PathBuf,
    /// The OCI runtime.
    pub runc: PathBuf,
}

impl Layout {
    /// A file in the cluster's `etc` folder.
    pub fn etc(&self, name: &str) -> PathBuf {
        self.folder.join("etc").join(name)
    }

    /// Log file of a component.
    pub fn log(&self, component: &str) -> PathBuf {
        self.logs().join(format!("{component}.log"))
    }

    /// Folder of the components' logs.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Folder of the containers' logs.
    pub fn pod_logs(&self) -> PathBuf {
        self.folder.join("pods")
    }

    /// The kubelet's folder, seen as `/var/lib/kubelet` on the node.
    pub fn kubelet(&self) -> PathBuf {
        self.folder.join("kubelet")
    }

    /// Seen as `/var/lib/vendue` on the node: what a provider's administrator would put there.
    pub fn node(&self) -> PathBuf {
        self.folder.join("node")
    }

    /// Root of containerd's own store.
    pub fn containerd_root(&self) -> PathBuf {
        self.folder.join("containerd")
    }

    /// Root of etcd's data.
    pub fn etcd_data(&self) -> PathBuf {
        self.folder.join("etcd")
    }

    /// Folder of the pre-made volumes.
    pub fn volumes(&self) -> PathBuf {
        self.folder.join("volumes")
    }

    /// containerd's socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// Kubeconfig of a component.
    pub fn kubeconfig(&self, client: &str) -> PathBuf {
        self.etc(&format!("{client}.kubeconfig"))
    }

    /// Kubeconfig of the administrator.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// `containerd.toml`.
pub fn containerd(layout: &Layout) -> String {
    containerd_at(
        &layout.containerd_root(),
        Path::new("/run/containerd/state"),
        &layout.containerd_socket(),
        &layout.bin,
        &layout.etc("cni"),
        &layout.etc("registries"),
    )
}

/// Configuration of a containerd with a root of its own. `restrict_oom_score_adj` because Pods must not outlive
/// the machine's other programs when memory is short, and because not every root may lower the score.
pub fn containerd_at(
    root: &Path,
    state: &Path,
    socket: &Path,
    bin: &Programs,
    cni: &Path,
    registries: &Path,
) -> String {
    format!(
        r#"version = 3
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp", "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs"]
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{registries}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{cni_bin}"]
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri"]
stream_server_address = "127.0.0.1"
stream_server_port = "0"
"#,
        root = root.display(),
        state = state.display(),
        socket = socket.display(),
        registries = registries.display(),
        runc = bin.runc.display(),
        cni_bin = bin.cni.display(),
        cni = cni.display(),
    )
}

/// Every registry is a closed port, so that a missing image fails at once instead of waiting for a name
/// server that is not there.
pub const DEAD_REGISTRY: &str = "server = \"http://127.0.0.1:9\"\n";

/// The Pod network: a point-to-point link per Pod, addresses from the node's range.
pub fn cni(layout: &Layout) -> Value {
    json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "ptp", "ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1500, "ipam": {
            "type": "host-local", "dataDir": text(&layout.folder.join("ipam")),
            "ranges": [[{"subnet": layout.place.pod_range()}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
    ]})
}

/// CoreDNS for the cluster's own names; there is nothing to forward to.
pub fn corefile(layout: &Layout) -> String {
    format!(
        "cluster.local:53 in-addr.arpa:53 {{\n  bind {address}\n  errors\n  ready {address}:8181\n  \
         kubernetes cluster.local in-addr.arpa {{\n    kubeconfig {kubeconfig}\n    ttl 5\n  }}\n  cache 5\n}}\n",
        address = layout.place.address(),
        kubeconfig = layout.kubeconfig("coredns").display(),
    )
}

/// Configuration of kubelet.
pub fn kubelet(layout: &Layout) -> Value {
    json!({"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": text(&layout.pki.crt("ca"))}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": text(&layout.pki.crt("kubelet-server")),
        "tlsPrivateKeyFile": text(&layout.pki.key("kubelet-server")),
        "clusterDomain": "cluster.local", "clusterDNS": [DNS_ADDRESS],
        "resolvConf": text(&layout.etc("resolv.conf")),
        "containerRuntimeEndpoint": format!("unix://{}", layout.containerd_socket().display()),
        "podLogsDir": text(&layout.pod_logs()),
        // Several kubelets share the machine's control groups: no own hierarchy, a parent per cluster.
        "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [],
        "cgroupRoot": format!("/{}", layout.place.cgroup()), "failCgroupV1": false, "failSwapOn": false,
        // The disk is the host's: a full one must not evict every Pod of every cluster.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
            "imagefs.available": "1%", "imagefs.inodesFree": "1%"},
        // Images are imported, never pulled: none may be collected.
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "5s", "syncFrequency": "10s",
        "healthzBindAddress": "127.0.0.1",
        "logging": {"flushFrequency": "1s"}})
}

/// Configuration of kube-proxy.
pub fn kube_proxy(layout: &Layout) -> Value {
    json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "nftables", "clusterCIDR": layout.place.pod_range(), "hostnameOverride": layout.place.node(),
        "clientConnection": {"kubeconfig": text(&layout.kubeconfig("kube-proxy"))},
        "bindAddress": "0.0.0.0", "metricsBindAddress": "127.0.0.1:10249", "healthzBindAddress": "127.0.0.1:10256",
        // The table of connections is the host's; its size is not ours to set.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"}})
}

/// Components in the order they start. `etcd` and the API server come first, the rest needs the latter.
pub fn components(layout: &Layout) -> Vec<(&'static str, Vec<String>)> {
    vec![
        ("etcd", etcd(layout)),
        ("kube-apiserver", api_server(layout)),
        (
            "containerd",
            vec![
                text(&layout.bin.containerd.join("containerd")),
                "--config".into(),
                text(&layout.etc("containerd.toml")),
            ],
        ),
        ("kube-controller-manager", controller_manager(layout)),
        ("kube-scheduler", scheduler(layout)),
        ("kubelet", kubelet_command(layout)),
        (
            "kube-proxy",
            vec![
                program(layout, "kube-proxy"),
                format!("--config={}", layout.etc("kube-proxy.json").display()),
            ],
        ),
        ("coredns", vec![text(&layout.bin.coredns), "-conf".into(), text(&layout.etc("Corefile"))]),
    ]
}

/// Components that start before the API server answers.
pub const EARLY: [&str; 3] = ["etcd", "kube-apiserver", "containerd"];

fn program(layout: &Layout, name: &str) -> String {
    text(&layout.bin.kubernetes.join(name))
}

fn etcd(layout: &Layout) -> Vec<String> {
    vec![
        text(&layout.bin.etcd),
        format!("--data-dir={}", layout.etcd_data().display()),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        "--initial-advertise-peer-urls=http://127.0.0.1:2380".into(),
        "--initial-cluster=default=http://127.0.0.1:2380".into(),
        "--log-level=warn".into(),
        // The data is thrown away with the cluster.
        "--unsafe-no-fsync".into(),
    ]
}

fn api_server(layout: &Layout) -> Vec<String> {
    let pki = &layout.pki;
    let crt = |name: &str| pki.crt(name).display().to_string();
    let key = |name: &str| pki.key(name).display().to_string();
    let mut args = vec![program(layout, "kube-apiserver")];
    for (flag, value) in [
        ("etcd-servers", "http://127.0.0.1:2379".to_string()),
        ("bind-address", "0.0.0.0".into()),
        ("advertise-address", layout.place.address()),
        ("secure-port", "6443".into()),
        ("service-cluster-ip-range", SERVICE_RANGE.into()),
        ("client-ca-file", crt("ca")),
        ("tls-cert-file", crt("apiserver")),
        ("tls-private-key-file", key("apiserver")),
        ("kubelet-certificate-authority", crt("ca")),
        ("kubelet-client-certificate", crt("apiserver-kubelet")),
        ("kubelet-client-key", key("apiserver-kubelet")),
        ("kubelet-preferred-address-types", "InternalIP".into()),
        ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".into()),
        ("service-account-key-file", pki.crt("sa").with_file_name("sa.pub").display().to_string()),
        ("service-account-signing-key-file", key("sa")),
        ("authorization-mode", "Node,RBAC".into()),
        ("enable-admission-plugins", "NodeRestriction".into()),
        // Aggregated APIs are served by Pods: their authority, and routing to Pod addresses.
        ("requestheader-client-ca-file", crt("front-proxy-ca")),
        ("requestheader-allowed-names", "front-proxy-client".into()),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
        ("requestheader-group-headers", "X-Remote-Group".into()),
        ("requestheader-username-headers", "X-Remote-User".into()),
        ("proxy-client-cert-file", crt("front-proxy-client")),
        ("proxy-client-key-file", key("front-proxy-client")),
        ("enable-aggregator-routing", "true".into()),
        ("allow-privileged", "true".into()),
        ("profiling", "false".into()),
    ] {
        args.push(format!("--{flag}={value}"));
    }
    args
}

fn with_kubeconfig(layout: &Layout, name: &str, client: &str) -> Vec<String> {
    let kubeconfig = layout.kubeconfig(client).display().to_string();
    vec![
        program(layout, name),
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        "--profiling=false".into(),
    ]
}

fn controller_manager(layout: &Layout) -> Vec<String> {
    let mut args = with_kubeconfig(layout, "kube-controller-manager", "controller-manager");
    let pki = &layout.pki;
    args.extend([
        "--use-service-account-credentials=true".into(),
        format!("--service-account-private-key-file={}", pki.key("sa").display()),
        format!("--root-ca-file={}", pki.crt("ca").display()),
        format!("--cluster-signing-cert-file={}", pki.crt("ca").display()),
        format!("--cluster-signing-key-file={}", pki.key("ca").display()),
    ]);
    args
}

fn scheduler(layout: &Layout) -> Vec<String> {
    with_kubeconfig(layout, "kube-scheduler", "scheduler")
}

fn kubelet_command(layout: &Layout) -> Vec<String> {
    vec![
        program(layout, "kubelet"),
        format!("--config={}", layout.etc("kubelet.json").display()),
        format!("--kubeconfig={}", layout.kubeconfig("kubelet").display()),
        format!("--hostname-override={}", layout.place.node()),
        format!("--node-ip={}", layout.place.address()),
        "--root-dir=/var/lib/kubelet".into(),
        "--cert-dir=/var/lib/kubelet/pki".into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let any = |name: &str| PathBuf::from("/tools").join(name);
        Layout {
            place: Place { market: "m".into(), cluster: "c".into(), slot: 0, index: 3 },
            folder: "/run/m/c".into(),
            pki: Pki::at(Path::new("/run/m/c/pki")),
            bin: Programs {
                kubernetes: any("k"),
                etcd: any("etcd"),
                containerd: any("c"),
                cni: any("cni"),
                coredns: any("coredns"),
                pause: any("pause"),
                helm: any("helm"),
                kubectl: any("kubectl"),
                runc: "/usr/sbin/runc".into(),
            },
        }
    }

    #[test]
    fn api_server_serves_aggregated_apis_on_the_node_address() {
        let args = api_server(&layout());
        assert!(args.contains(&"--advertise-address=10.77.3.2".into()));
        assert!(args.contains(&"--enable-aggregator-routing=true".into()));
        assert!(args.iter().any(|a| a.starts_with("--requestheader-client-ca-file=")));
    }

    #[test]
    fn pod_network_uses_the_clusters_own_range() {
        assert!(cni(&layout()).to_string().contains("10.103.0.0/24"));
    }

    #[test]
    fn early_components_come_first() {
        let names: Vec<_> = components(&layout()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(&names[..3], &EARLY);
    }
}
