//! The clusters themselves, before anything of Vendue's is in them: each test starts a small market of its own.
//!
//! Inputs: the test bed's tools and images, and the GPU simulator in the target folder. Invariant: a test stops its
//! market also when it fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail by panicking, as tests do"
)]

use std::net::{TcpListener, UdpSocket};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command as HostCommand;
use std::time::Duration;

use futures::FutureExt as _;
use serde_json::{Value, json};
use vendue_testbed::command::{command, run, run_with_input};
use vendue_testbed::images::RAY_IMAGE;
use vendue_testbed::objects::apply;
use vendue_testbed::process::{ProcessId, all, in_network_namespace};
use vendue_testbed::state::MarketState;
use vendue_testbed::store::Importer;
use vendue_testbed::wait::{Poll, until};
use vendue_testbed::{
    Cluster, ClusterSpec, Market, MarketSpec, Options, Paths, Progress, Result, Setup, cleanup, config, dump,
    setup,
};

const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// Starts a market, runs the test, stops the market, and only then lets a failure through.
async fn with_market<F: Future<Output = Result<()>>>(
    name: &str,
    clusters: Vec<ClusterSpec>,
    test: impl FnOnce(Setup, Vec<Cluster>) -> F,
) {
    let progress = Progress::stderr();
    let setup = setup::prepare(&Paths::from_env().unwrap(), &progress).await.unwrap();
    let spec = MarketSpec { name: name.into(), clusters };
    let options = Options { programs: Some(programs()), progress, ..Options::default() };
    let market = Market::start(&setup, &spec, &options).await.unwrap();
    let work = AssertUnwindSafe(test(setup.clone(), market.clusters().to_vec())).catch_unwind();
    let result = tokio::time::timeout(4 * LIMIT, work).await;
    if !matches!(result, Ok(Ok(Ok(())))) {
        let folder = setup.paths.cache().join("failed").join(name);
        eprintln!("{}", dump::market(&market, &folder).await.unwrap());
    }
    market.stop(&setup).await.unwrap();
    match result.expect("the test took too long") {
        Ok(result) => result.unwrap(),
        Err(panic) => resume_unwind(panic),
    }
    assert_eq!(leftovers(name), Vec::<String>::new());
}

/// Cargo's target folder of this build, where the simulator is too.
fn programs() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_testbed")).parent().unwrap().to_path_buf()
}

/// What a market of this name left on the machine.
fn leftovers(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let namespaces = HostCommand::new("ip").args(["netns", "list"]).output().unwrap();
    let namespaces = String::from_utf8_lossy(&namespaces.stdout).into_owned();
    found.extend(
        namespaces
            .lines()
            .filter(|l| l.starts_with(&format!("vd-{name}-")))
            .map(|l| format!("namespace {l}")),
    );
    let folder = Paths::from_env().unwrap().run(name);
    if folder.exists() {
        found.push(format!("folder {}", folder.display()));
    }
    let part = format!("/run/{name}/");
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    found.extend(mounts.lines().filter(|l| l.contains(&part)).map(|l| format!("mount {l}")));
    for pid in all() {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(folder.to_str().unwrap()) && ProcessId::of(pid).is_some() {
            found.push(format!("process {pid} {line}"));
        }
    }
    for root in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let group = root.path().join("vendue").join(name);
        if group.exists() {
            found.push(format!("control group {}", group.display()));
        }
    }
    found
}

async fn kubectl(setup: &Setup, cluster: &Cluster, args: &[&str]) -> Result<String> {
    let mut kubectl = command(&setup.programs.kubectl, cluster.kubectl_args());
    kubectl.args(args);
    run("kubectl", LIMIT, kubectl).await
}

/// Runs a Python program in a Pod.
async fn python(setup: &Setup, cluster: &Cluster, pod: &str, program: &str) -> Result<String> {
    let mut kubectl = command(&setup.programs.kubectl, cluster.kubectl_args());
    kubectl.args(["exec", "--stdin", pod, "--", "python", "-"]);
    Ok(run_with_input("kubectl exec", LIMIT, kubectl, program).await?.trim().to_string())
}

fn pod(name: &str, program: &str, extra: &Value) -> Value {
    let mut spec = json!({"securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "fsGroup": 1000},
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": RAY_IMAGE, "command": ["python", "-c", program]}]});
    if let Some(volumes) = extra.get("volumes") {
        spec["volumes"] = volumes.clone();
    }
    for field in ["volumeMounts", "resources", "ports", "readinessProbe"] {
        if let Some(value) = extra.get(field) {
            spec["containers"][0][field] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": spec})
}

async fn start_pod(setup: &Setup, cluster: &Cluster, object: &Value) -> Result<()> {
    apply(&cluster.client(), "pods", object).await?;
    let name = format!("pod/{}", object["metadata"]["name"].as_str().unwrap());
    kubectl(setup, cluster, &["wait", "--for=condition=Ready", &name, "--timeout=50s"]).await.map(|_| ())
}

const IDLE: &str = "import signal; signal.pause()";

#[tokio::test]
#[ignore = "needs root and the test bed's tools; run by cargo verify"]
async fn a_pod_has_dns_services_a_volume_and_a_gpu() {
    let clusters = vec![ClusterSpec::new("one").with_gpus("h100", 2)];
    with_market("infpod", clusters, |setup, clusters| async move {
        let cluster = &clusters[0];
        let client = cluster.client();
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": "default"}, "spec": {"accessModes": ["ReadWriteMany"],
            "storageClassName": "vendue-local", "resources": {"requests": {"storage": "1Gi"}}}});
        apply(&client, "persistentvolumeclaims", &claim).await?;
        let program = "import http.server,os; os.chdir('/data'); open('file','w').write('kept'); \
                       http.server.test(http.server.SimpleHTTPRequestHandler, port=8000)";
        let extra = json!({"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}], "resources": {"limits": {"nvidia.com/gpu": 1}},
            "readinessProbe": {"httpGet": {"port": 8000}, "periodSeconds": 1}});
        start_pod(&setup, cluster, &pod("web", program, &extra)).await?;
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]}});
        apply(&client, "services", &service).await?;
        let volume = json!({"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
        start_pod(&setup, cluster, &pod("reader", IDLE, &volume)).await?;
        let get = "import urllib.request as u,time\nfor i in range(50):\n try:\n  \
                   print(u.urlopen('http://web.default.svc.cluster.local/file',timeout=2).read().decode()); break\n \
                   except OSError: time.sleep(.1)\n";
        assert_eq!(python(&setup, cluster, "reader", get).await?, "kept");
        assert_eq!(python(&setup, cluster, "reader", "print(open('/data/file').read())").await?, "kept");
        let gpus = "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])";
        assert!(python(&setup, cluster, "web", gpus).await?.starts_with("GPU-"));
        kubectl(&setup, cluster, &["delete", "pod", "web", "reader", "--now"]).await?;
        kubectl(&setup, cluster, &["delete", "pvc", "data", "--timeout=30s"]).await?;
        until("wait for all volumes to be available again", LIMIT, POLL, || async {
            let phases = kubectl(&setup, cluster, &["get", "pv", "-o", "jsonpath={.items[*].status.phase}"]).await?;
            let again = phases.split_whitespace().filter(|p| *p == "Available").count() == 4;
            Ok(if again { Poll::Ready(()) } else { Poll::Pending(phases) })
        })
        .await
    })
    .await;
}

/// Sends datagrams to an address and prints whether an answer came.
fn knock(address: &str) -> String {
    format!(
        "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(.5)\nseen='silence'\n\
         for i in range(4):\n try:\n  s.sendto(b'x',('{address}',30999)); seen=s.recv(100).decode(); break\n \
         except OSError: pass\nprint(seen)"
    )
}

#[tokio::test]
#[ignore = "needs root and the test bed's tools; run by cargo verify"]
async fn clusters_reach_each_other_until_one_is_cut_off() {
    let clusters = vec![ClusterSpec::new("one"), ClusterSpec::new("two")];
    with_market("infnet", clusters, |setup, clusters| async move {
        let (one, two) = (&clusters[0], &clusters[1]);
        let echo = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('0.0.0.0',9000))\n\
                    while True:\n d,a=s.recvfrom(2000); s.sendto(a[0].encode(),a)";
        start_pod(&setup, two, &pod("echo", echo, &json!({}))).await?;
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo", "namespace": "default"},
            "spec": {"type": "NodePort", "externalTrafficPolicy": "Local", "selector": {"app": "echo"},
                "ports": [{"port": 9000, "protocol": "UDP", "nodePort": 30999}]}});
        apply(&two.client(), "services", &service).await?;
        start_pod(&setup, one, &pod("caller", IDLE, &json!({}))).await?;
        let program = knock(&two.address().unwrap());
        let answer = async || python(&setup, one, "caller", &program).await;
        // kube-proxy needs a moment to learn of the Service.
        until("wait for an answer", LIMIT, POLL, || async {
            let seen = answer().await?;
            Ok(if Some(&seen) == one.address().as_ref() { Poll::Ready(()) } else { Poll::Pending(seen) })
        })
        .await?;
        two.cut().await?;
        assert_eq!(answer().await?, "silence");
        let nodes = kubectl(&setup, two, &["get", "nodes", "--no-headers"]).await?;
        assert!(nodes.contains(" Ready "), "the host looks at a cluster that is cut off: {nodes}");
        two.heal().await?;
        assert_eq!(Some(answer().await?), one.address());
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs root and the test bed's tools; run by cargo verify"]
async fn an_aggregated_api_is_served_by_a_pod_that_learns_who_asks() {
    with_market("infagg", vec![ClusterSpec::new("one")], |setup, clusters| async move {
        let cluster = &clusters[0];
        let client = cluster.client();
        let made = rcgen::generate_simple_self_signed(vec!["agg.default.svc".to_string()]).unwrap();
        let secret = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "agg", "namespace": "default"},
            "data": {"pem": format!("{}{}", made.signing_key.serialize_pem(), made.cert.pem())}});
        apply(&client, "configmaps", &secret).await?;
        let program = "import http.server,ssl,json\nclass H(http.server.BaseHTTPRequestHandler):\n def do_GET(self):\n  \
            b=json.dumps({'kind':'APIResourceList','apiVersion':'v1','groupVersion':'dummy.vendue.dev/v1',\
            'resources':[],'user':self.headers.get('X-Remote-User')}).encode()\n  self.send_response(200)\n  \
            self.send_header('Content-Type','application/json'); self.send_header('Content-Length',str(len(b)))\n  \
            self.end_headers(); self.wfile.write(b)\ns=http.server.ThreadingHTTPServer(('0.0.0.0',8443),H)\n\
            c=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); c.load_cert_chain('/pem/pem')\n\
            s.socket=c.wrap_socket(s.socket,server_side=True); s.serve_forever()";
        let extra = json!({"volumes": [{"name": "pem", "configMap": {"name": "agg"}}],
            "volumeMounts": [{"name": "pem", "mountPath": "/pem"}],
            "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1}});
        start_pod(&setup, cluster, &pod("agg", program, &extra)).await?;
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "agg", "namespace": "default"},
            "spec": {"selector": {"app": "agg"}, "ports": [{"port": 443, "targetPort": 8443}]}});
        apply(&client, "services", &service).await?;
        let api = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1.dummy.vendue.dev"}, "spec": {"group": "dummy.vendue.dev", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": true,
            "service": {"name": "agg", "namespace": "default"}}});
        apply(&client, "apiservices", &api).await?;
        kubectl(&setup, cluster, &["wait", "--for=condition=Available", "apiservice/v1.dummy.vendue.dev", "--timeout=30s"])
            .await?;
        let answer = kubectl(&setup, cluster, &["get", "--raw", "/apis/dummy.vendue.dev/v1"]).await?;
        assert!(answer.contains("\"user\": \"kubernetes-admin\""), "{answer}");
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs root and the test bed's tools; run by cargo verify"]
async fn killed_and_frozen_components_and_pods_come_back() {
    with_market("inffault", vec![ClusterSpec::new("one")], |setup, clusters| async move {
        let cluster = &clusters[0];
        start_pod(&setup, cluster, &pod("idle", IDLE, &json!({}))).await?;
        let before = cluster.pod_processes("default", "idle").await?;
        assert_eq!(before.len(), 1);
        cluster.freeze_pod("default", "idle").await?;
        until("wait for the Pod to stand still", LIMIT, POLL, || async {
            Ok(if before[0].is_stopped() { Poll::Ready(()) } else { Poll::Pending(String::new()) })
        })
        .await?;
        cluster.thaw_pod("default", "idle").await?;
        assert_eq!(cluster.kill_pod("default", "idle").await?, 1);
        until("wait for kubelet to restart the Pod", LIMIT, POLL, || async {
            let now = cluster.pod_processes("default", "idle").await?;
            Ok(if now.len() == 1 && now != before {
                Poll::Ready(())
            } else {
                Poll::Pending(format!("{now:?}"))
            })
        })
        .await?;
        for component in ["containerd", "kubelet", "kube-apiserver", "coredns"] {
            cluster.kill_component(component).await?;
            assert!(cluster.component(component).is_err());
            cluster.restart_component(component).await?;
            assert!(cluster.component(component)?.is_alive());
        }
        cluster.freeze_component("kube-scheduler")?;
        cluster.thaw_component("kube-scheduler")?;
        until("wait for the API server to answer again", LIMIT, POLL, || async {
            let look = kubectl(&setup, cluster, &["get", "--raw", "/readyz"]).await;
            Ok(look.map_or_else(|e| Poll::Pending(e.to_string()), |_| Poll::Ready(())))
        })
        .await?;
        start_pod(&setup, cluster, &pod("later", IDLE, &json!({}))).await?;
        assert!(cluster.kill_component("nobody").await.unwrap_err().to_string().contains("kubelet"));
        Ok(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs root and the test bed's tools; run by cargo verify"]
async fn a_killed_test_bed_takes_its_clusters_along_and_the_rest_is_cleaned() {
    let paths = Paths::from_env().unwrap();
    setup::prepare(&paths, &Progress::stderr()).await.unwrap();
    let name = "infkill";
    let mut up = command(env!("CARGO_BIN_EXE_testbed"), ["up", "--market", name, "--only", "home"]);
    let mut up = up.kill_on_drop(true).spawn().unwrap();
    let state = paths.run(name).join("state.json");
    let namespace = vendue_testbed::network::namespace_file(&format!("vd-{name}-home"));
    until("wait for some components", LIMIT, POLL, || async {
        let text = std::fs::read_to_string(&state).unwrap_or_default();
        Ok(if text.contains("kubelet") { Poll::Ready(()) } else { Poll::Pending("none".into()) })
    })
    .await
    .unwrap();
    up.kill().await.unwrap();
    until("wait for all processes to end", LIMIT, POLL, || async {
        let left = in_network_namespace(&namespace).len();
        Ok(if left == 0 { Poll::Ready(()) } else { Poll::Pending(format!("{left} left")) })
    })
    .await
    .unwrap();
    assert!(!leftovers(name).is_empty(), "names and folders are left for the next start");
    cleanup::market(&paths, name).await.unwrap();
    assert_eq!(leftovers(name), Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs root and the test bed's tools; run by cargo verify"]
async fn an_interrupted_start_leaves_nothing() {
    let paths = Paths::from_env().unwrap();
    setup::prepare(&paths, &Progress::stderr()).await.unwrap();
    let name = "infint";
    let mut up = command(env!("CARGO_BIN_EXE_testbed"), ["up", "--market", name, "--only", "home,alpha"]);
    let mut up = up.kill_on_drop(true).spawn().unwrap();
    let process = ProcessId::of(up.id().unwrap().cast_signed()).unwrap();
    let state = paths.run(name).join("state.json");
    until("wait for the start to be under way", LIMIT, Duration::from_millis(20), || async {
        let text = std::fs::read_to_string(&state).unwrap_or_default();
        Ok(if text.contains("etcd") { Poll::Ready(()) } else { Poll::Pending("not yet".into()) })
    })
    .await
    .unwrap();
    process.signal(nix::sys::signal::Signal::SIGINT).unwrap();
    let status = tokio::time::timeout(LIMIT, up.wait()).await.unwrap().unwrap();
    assert!(!status.success());
    assert_eq!(leftovers(name), Vec::<String>::new());
}

/// Starts the market a second time, as in another terminal, and returns why that is refused.
async fn second_start(name: &str) -> String {
    let again = command(env!("CARGO_BIN_EXE_testbed"), ["up", "--market", name, "--only", "home"]);
    run("start again", LIMIT, again).await.unwrap_err().to_string()
}

/// The ports that a cluster's programs listen at, taken by somebody on this machine.
fn take_ports() -> (Vec<TcpListener>, Vec<UdpSocket>) {
    // One that is taken already serves as well.
    let tcp = [2379, 2380, 6443, 10250, 10257, 10259].map(|port| TcpListener::bind(("0.0.0.0", port)));
    let udp = [53, 30470].map(|port| UdpSocket::bind(("0.0.0.0", port)));
    (tcp.into_iter().flatten().collect(), udp.into_iter().flatten().collect())
}

#[tokio::test]
#[ignore = "needs root and the test bed's tools; run by cargo verify"]
async fn a_second_start_names_the_first_and_ends_nothing() {
    let paths = Paths::from_env().unwrap();
    let setup = setup::prepare(&paths, &Progress::stderr()).await.unwrap();
    let name = "inftwice";
    let _ports = take_ports();
    let mut up = command(env!("CARGO_BIN_EXE_testbed"), ["up", "--keep", "--market", name, "--only", "home"]);
    let mut up = up.kill_on_drop(true).spawn().unwrap();
    let first = ProcessId::of(up.id().unwrap().cast_signed()).unwrap();
    let state = || MarketState::load(&paths.run(name)).ok().flatten();
    let node = || state()?.clusters.first()?.node.filter(|node| node.is_alive());
    until("wait for the start to be under way", LIMIT, Duration::from_millis(20), || async {
        Ok(node().map_or_else(|| Poll::Pending("no node".into()), |_| Poll::Ready(())))
    })
    .await
    .unwrap();
    let before = node();
    let advice = format!("cargo testbed down --market {name}");

    let refused = second_start(name).await;
    assert!(refused.contains(&format!("process {} ", first.pid)) && refused.contains(&advice), "{refused}");
    cleanup::own(&paths, name).await.unwrap();
    assert!(before.is_some() && node() == before, "the first start goes on");

    let status = tokio::time::timeout(LIMIT, up.wait()).await.unwrap().unwrap();
    assert!(status.success(), "although others have its ports on the host");
    let refused = second_start(name).await;
    assert!(refused.contains("left running") && refused.contains(&advice), "{refused}");
    cleanup::own(&paths, name).await.unwrap();
    assert!(node() == before, "what was kept stays");

    let market = Market::take_over(&setup, name).await.unwrap().expect("it was kept");
    let refused = second_start(name).await;
    assert!(refused.contains(&format!("process {} ", std::process::id())), "{refused}");
    assert!(node() == before && market.clusters()[0].is_running());
    market.stop(&setup).await.unwrap();
    assert_eq!(leftovers(name), Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs root and the test bed's tools; run by cargo verify"]
async fn an_import_ends_with_the_process_that_began_it() {
    let setup = setup::prepare(&Paths::from_env().unwrap(), &Progress::stderr()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (socket, none) = (at("c.sock"), at("none"));
    let text = config::containerd_at(&at("root"), &at("state"), &socket, &setup.programs, &none, &none);
    std::fs::write(at("c.toml"), text).unwrap();
    let start = async || Importer::start(&setup.programs, &at("c.toml"), &socket, &at("log")).await.unwrap();
    let importer = start().await;
    let process = importer.process();
    importer.stop().await.unwrap();
    assert!(!process.is_alive());
    // Killed, this process would send no signal: its end of a pipe is closed, and that is all.
    let importer = start().await;
    let process = importer.process();
    assert!(process.is_alive());
    drop(importer);
    process.gone(LIMIT).await.unwrap();
}
