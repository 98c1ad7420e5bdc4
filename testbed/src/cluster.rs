//! One cluster: how it starts, and the handle that everything else uses.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::Client;
use kube::api::Api;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{call, connect, get_text};
use crate::config::{self, EARLY, Layout};
use crate::error::{Error, Result};
use crate::gpu::{self, Simulator};
use crate::kubeconfig::{self, Entry};
use crate::market::Shared;
use crate::node::{self, Tie};
use crate::pki::Pki;
use crate::process::ProcessId;
use crate::spec::ClusterSpec;
use crate::state::{ClusterState, ComponentState};
use crate::wait::{self, Poll};
use crate::{disk, files, network, objects, store, volumes};

const API_READY: Duration = Duration::from_secs(60);
const NODE_READY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// A running cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    name: String,
    kubeconfig: PathBuf,
    context: Option<String>,
    client: Client,
    own: Option<Own>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.name)
            .field("kubeconfig", &self.kubeconfig)
            .finish_non_exhaustive()
    }
}

/// What only a cluster of the test bed's own has.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) layout: Layout,
    pub(crate) shared: Shared,
}

impl Cluster {
    /// A cluster that the user already has, under a name of its own.
    pub(crate) async fn existing(kubeconfig: &Path, name: &str, context: &str) -> Result<Self> {
        let client = connect(kubeconfig, Some(context)).await?;
        get_text(&client, "/readyz").await.map_err(|error| {
            Error::Invalid(format!(
                "{name} cannot be reached or does not know you: {error}; next: `kubectl --kubeconfig {} --context \
                 {context} get --raw /readyz`",
                kubeconfig.display()
            ))
        })?;
        Ok(Self {
            name: name.into(),
            kubeconfig: kubeconfig.into(),
            context: Some(context.into()),
            client,
            own: None,
        })
    }

    /// The handle of a cluster that runs already.
    pub(crate) async fn attach(layout: Layout, shared: Shared) -> Result<Self> {
        let kubeconfig = layout.admin_kubeconfig();
        let client = connect(&kubeconfig, None).await?;
        Ok(Self {
            name: layout.place.cluster.clone(),
            kubeconfig,
            context: None,
            client,
            own: Some(Own { layout, shared }),
        })
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kubeconfig file of the administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Context in that file, where it is not the current one.
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// Arguments that make kubectl and helm use this cluster.
    pub fn kubectl_args(&self) -> Vec<String> {
        let mut args = vec![format!("--kubeconfig={}", self.kubeconfig.display())];
        args.extend(self.context.as_ref().map(|c| format!("--context={c}")));
        args
    }

    /// Arguments that make helm use this cluster.
    pub fn helm_args(&self) -> Vec<String> {
        let mut args = vec![format!("--kubeconfig={}", self.kubeconfig.display())];
        args.extend(self.context.as_ref().map(|c| format!("--kube-context={c}")));
        args
    }

    /// Client with the administrator's rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Address of the node in the network between the clusters, where NodePorts answer; for a cluster that
    /// the user already has, ask the Node object.
    pub fn address(&self) -> Option<String> {
        self.own.as_ref().map(|own| own.layout.place.address())
    }

    /// Name of the node.
    pub fn node(&self) -> Option<String> {
        self.own.as_ref().map(|own| own.layout.place.node())
    }

    /// Name of the network namespace.
    pub fn network_namespace(&self) -> Option<String> {
        self.own.as_ref().map(|own| own.layout.place.namespace())
    }

    /// Folder of the components' logs.
    pub fn logs(&self) -> Option<PathBuf> {
        self.own.as_ref().map(|own| own.layout.logs())
    }

    /// Folder on the host that is `/var/lib/vendue` on the node.
    pub fn node_folder(&self) -> Option<PathBuf> {
        self.own.as_ref().map(|own| own.layout.node())
    }

    /// State file of the node's simulated GPUs.
    pub fn gpu_state_file(&self) -> Option<PathBuf> {
        self.own.as_ref().map(|own| gpu::state_file(&own.layout)).filter(|path| path.exists())
    }

    pub(crate) fn own(&self) -> Result<&Own> {
        self.own.as_ref().ok_or_else(|| {
            Error::Invalid(format!(
                "cluster {} is not the test bed's own: it cannot be stopped, cut off or broken",
                self.name
            ))
        })
    }

    /// What the state file says about this cluster.
    pub fn state(&self) -> Result<ClusterState> {
        let own = self.own()?;
        own.shared
            .read(|market| market.clusters.iter().find(|c| c.place == own.layout.place).cloned())?
            .ok_or_else(|| Error::Invalid(format!("cluster {} is not in the market's state", self.name)))
    }

    /// Whether the node runs; a cluster that the user already has counts as running.
    pub fn is_running(&self) -> bool {
        self.own.is_none() || self.state().is_ok_and(|state| state.node.is_some_and(ProcessId::is_alive))
    }

    /// Imports an image into the running cluster.
    pub async fn import(&self, image: &crate::images::Image) -> Result<()> {
        let own = self.own()?;
        let layout = &own.layout;
        let node =
            self.state()?.node.ok_or_else(|| Error::Invalid(format!("cluster {} has no node", self.name)))?;
        let socket = layout.containerd_socket();
        store::import(
            &layout.bin,
            &socket,
            &layout.containerd_root(),
            image,
            &layout.log("import"),
            Some(node),
        )
        .await
    }
}

/// What is needed to start a cluster, beside its layout and spec.
#[derive(Clone, Debug)]
pub(crate) struct Ingredients {
    pub(crate) template: PathBuf,
    pub(crate) simulator: Option<Simulator>,
    pub(crate) shared: Shared,
}

/// Starts a cluster and waits until its node is ready, its DNS answers and its GPUs are advertised.
pub(crate) async fn start(layout: Layout, spec: &ClusterSpec, with: &Ingredients) -> Result<(Cluster, Tie)> {
    prepare_files(&layout)?;
    if let Some(mib) = spec.disk_mib {
        // Before the node's process has its own view of the mounts, so that host and node see the same disk.
        disk::mount(&layout.volumes(), mib).await?;
    }
    network::create_cluster(&layout.place).await?;
    let (process, tie) = node::start(&layout).await?;
    let fresh =
        ClusterState { place: layout.place.clone(), node: Some(process), components: vec![], cut: false };
    with.shared.update(|market| market.clusters.push(fresh))?;
    let from = with.template.clone();
    let root = layout.containerd_root();
    let clone = tokio::task::spawn_blocking(move || store::clone(&from, &root));
    clone.await.map_err(|e| Error::Invalid(format!("clone image store: {e}")))??;
    let mut commands = config::components(&layout);
    if spec.labels.is_empty() {
        // Nothing to add.
    } else if let Some((_, args)) = commands.iter_mut().find(|(name, _)| *name == "kubelet") {
        let labels: Vec<_> = spec.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        args.push(format!("--node-labels={}", labels.join(",")));
    }
    for (name, args) in commands.iter().filter(|(name, _)| EARLY.contains(name)) {
        start_component(&layout, &with.shared, process, name, args).await?;
    }
    let cluster = Cluster::attach(layout.clone(), with.shared.clone()).await?;
    wait_api(&cluster).await?;
    // kubelet ends when it finds no containerd.
    store::wait_for_socket(&layout.bin, &layout.containerd_socket()).await?;
    for (name, args) in commands.iter().filter(|(name, _)| !EARLY.contains(name)) {
        start_component(&layout, &with.shared, process, name, args).await?;
    }
    objects::apply_all(&cluster.client, &layout).await?;
    volumes::create(&cluster.client, &layout, spec.volumes).await?;
    wait_node(&cluster).await?;
    if let (Some(gpus), Some(simulator)) = (&spec.gpus, &with.simulator) {
        let args = simulator.install(&layout, gpus).await?;
        start_component(&layout, &with.shared, process, "device-plugin", &args).await?;
        gpu::wait_advertised(&cluster.client, &layout.place.node(), gpus.count, NODE_READY).await?;
    }
    wait_dns(&cluster).await?;
    wait_default_account(&cluster).await?;
    Ok((cluster, tie))
}

fn prepare_files(layout: &Layout) -> Result<()> {
    files::create_dir(&layout.folder)?;
    for folder in [layout.kubelet(), layout.pod_logs(), layout.volumes(), layout.node()] {
        files::create_dir(folder)?;
    }
    let pki = Pki::create(&layout.folder.join("pki"), &layout.place)?;
    let server = layout.place.api_url();
    let name = layout.place.cluster.as_str();
    for client in ["controller-manager", "scheduler", "kubelet", "kube-proxy", "coredns"] {
        kubeconfig::write(&layout.kubeconfig(client), &[Entry { name, server: &server, pki: &pki, client }])?;
    }
    let admin = Entry { name, server: &server, pki: &pki, client: "admin" };
    kubeconfig::write(&layout.admin_kubeconfig(), &[admin])?;
    files::write(layout.etc("containerd.toml"), config::containerd(layout))?;
    files::write(layout.etc("registries/_default/hosts.toml"), config::DEAD_REGISTRY)?;
    files::write(layout.etc("cni/10-pods.conflist"), config::cni(layout).to_string())?;
    files::write(layout.etc("Corefile"), config::corefile(layout))?;
    files::write(layout.etc("kubelet.json"), config::kubelet(layout).to_string())?;
    files::write(layout.etc("kube-proxy.json"), config::kube_proxy(layout).to_string())?;
    // Pods that ask for the node's resolver get the cluster's: there is no other.
    files::write(layout.etc("resolv.conf"), format!("nameserver {}\n", layout.place.address()))
}

/// Starts a component and writes it down, replacing what the state says of an earlier run.
pub(crate) async fn start_component(
    layout: &Layout,
    shared: &Shared,
    node: ProcessId,
    name: &str,
    args: &[String],
) -> Result<ProcessId> {
    let path = format!("{}:{}", layout.bin.containerd.display(), node::SYSTEM_PATH);
    let process = node::spawn_on(node, name, args, &path, &layout.log(name)).await?;
    let component = ComponentState { name: name.into(), command: args.to_vec(), process: Some(process) };
    shared.update(|market| {
        let Some(cluster) = market.clusters.iter_mut().find(|c| c.place == layout.place) else { return };
        match cluster.components.iter_mut().find(|c| c.name == name) {
            Some(old) => *old = component,
            None => cluster.components.push(component),
        }
    })?;
    Ok(process)
}

/// Fails early, with the end of its log, when any component has ended.
fn check_components(cluster: &Cluster) -> Result<()> {
    check(cluster, |_| true)
}

fn check_component(cluster: &Cluster, name: &str) -> Result<()> {
    check(cluster, |component| component == name)
}

fn check(cluster: &Cluster, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let own = cluster.own()?;
    for component in cluster.state()?.components.into_iter().filter(|c| wanted(&c.name)) {
        if component.process.is_none_or(|p| !p.is_alive()) {
            let log = own.layout.log(&component.name);
            return Err(Error::Command {
                operation: format!("run {} of {}", component.name, cluster.name),
                program: component.name,
                detail: format!("has ended; {}:\n{}", log.display(), crate::dump::tail_of(&log, 8)),
            });
        }
    }
    Ok(())
}

pub(crate) async fn wait_api(cluster: &Cluster) -> Result<()> {
    let operation = format!("wait for the API server of {}", cluster.name);
    wait::until(&operation, API_READY, POLL, || async {
        check_component(cluster, "kube-apiserver")?;
        Ok(match get_text(&cluster.client, "/readyz").await {
            Ok(_) => Poll::Ready(()),
            Err(error) => Poll::Pending(error.to_string()),
        })
    })
    .await
}

async fn wait_node(cluster: &Cluster) -> Result<()> {
    let api: Api<Node> = Api::all(cluster.client());
    let name = cluster.own()?.layout.place.node();
    wait::until(&format!("wait for node {name}"), NODE_READY, POLL, || async {
        check_components(cluster)?;
        let Some(found) = call("get node", api.get_opt(&name)).await? else {
            return Ok(Poll::Pending("not registered".into()));
        };
        let conditions = found.status.and_then(|s| s.conditions).unwrap_or_default();
        let ready = conditions.iter().find(|c| c.type_ == "Ready");
        Ok(match ready {
            Some(c) if c.status == "True" => Poll::Ready(()),
            Some(c) => Poll::Pending(c.message.clone().unwrap_or_default()),
            None => Poll::Pending("no condition yet".into()),
        })
    })
    .await
}

async fn wait_dns(cluster: &Cluster) -> Result<()> {
    let address = cluster.own()?.layout.place.address();
    let socket: SocketAddr =
        format!("{address}:8181").parse().map_err(|e| Error::Invalid(format!("address {address}: {e}")))?;
    wait::until(&format!("wait for the DNS of {}", cluster.name), NODE_READY, POLL, || async {
        check_components(cluster)?;
        let answer = tokio::time::timeout(Duration::from_secs(2), http_status(socket)).await;
        Ok(match answer {
            Ok(Ok(status)) if status == "200" => Poll::Ready(()),
            Ok(Ok(status)) => Poll::Pending(format!("HTTP status {status}")),
            Ok(Err(error)) => Poll::Pending(error.to_string()),
            Err(_) => Poll::Pending("no answer".into()),
        })
    })
    .await
}

async fn http_status(socket: SocketAddr) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(socket).await?;
    stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text.split_whitespace().nth(1).unwrap_or_default().to_string())
}

/// Pods are refused until their namespace's service account exists.
async fn wait_default_account(cluster: &Cluster) -> Result<()> {
    let api: Api<ServiceAccount> = Api::namespaced(cluster.client(), "default");
    wait::until(&format!("wait for the default account of {}", cluster.name), NODE_READY, POLL, || async {
        let found = call("get service account", api.get_opt("default")).await?;
        Ok(if found.is_some() { Poll::Ready(()) } else { Poll::Pending(String::new()) })
    })
    .await
}
