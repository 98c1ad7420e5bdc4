//! The program as a user starts it: exit codes, and where answers and errors go.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn vendue(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubectl-vendue"))
        .args(args)
        .env_remove("KUBECONFIG")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn wrong_usage_exits_2_and_says_what_is_accepted() {
    for args in [
        &["logs"][..],
        &["nonsense"],
        &["logs", "pod/x"],
        &["verify"],
        &["outputs", "x", "--wait", "long"],
        &["receipts"],
        &["receipts", "x", "--wait=long"],
    ] {
        let out = vendue(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", text(&out.stderr));
        assert!(!out.stderr.is_empty() && out.stdout.is_empty(), "{args:?}");
    }
    assert!(text(&vendue(&["logs", "pod/x"]).stderr).contains("accepted: job/NAME or NAME"));
}

#[test]
fn no_cluster_exits_3_with_a_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    let nobody = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
                  users: [{name: u, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n";
    fs::write(&config, nobody).unwrap();
    for args in [&["logs", "job/x"][..], &["outputs", "x"], &["receipts", "x"], &["verify", "x"], &["doctor"]]
    {
        let out = vendue(&[args, &["--kubeconfig", config.to_str().unwrap()]].concat());
        assert_eq!(out.status.code(), Some(3), "{args:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains("next: "), "{args:?}: {}", text(&out.stderr));
    }
    let missing = vendue(&["doctor", "--kubeconfig", "/nonexistent/config"]);
    assert_eq!(missing.status.code(), Some(3));
    assert!(text(&missing.stderr).contains("kubeconfig"), "{}", text(&missing.stderr));
}

#[test]
fn files_that_do_not_verify_exit_1_without_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["market", "certificate", "award"] {
        fs::write(file(name), "{}").unwrap();
    }
    let (market, certificate, award) = (file("market"), file("certificate"), file("award"));
    let files = ["verify", "--market", &market, "--certificate", &certificate, "--award", &award];
    let out = vendue(&[&files[..], &["-o", "json"]].concat());
    assert_eq!(out.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(answer["verified"], false);
    assert_eq!(answer["checks"][0]["name"], "market");
    assert!(text(&out.stderr).contains("not verified: market: "), "{}", text(&out.stderr));
    let gone =
        vendue(&["verify", "--market", "/nonexistent", "--certificate", &certificate, "--award", &award]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stderr).contains("/nonexistent"), "{}", text(&gone.stderr));
}

#[test]
fn a_file_of_receipts_is_verified_without_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.json");
    let none = r#"{"version":1,"job":{"namespace":"n","name":"x","uid":"u"},"awards":[]}"#;
    let empty = none.replace("[]", r#"[{"id":"a","provider":"p","seat":0,"price":"1","chains":[]}]"#);
    let other = none.replace("\"version\":1", "\"version\":9");
    for (text, code, word) in
        [(none, 0, ""), (&empty, 0, ""), (&other, 1, "version 9"), ("{}", 1, "no file of receipts")]
    {
        fs::write(&file, text).unwrap();
        let out = vendue(&["receipts", "--verify", file.to_str().unwrap(), "-o", "json"]);
        assert_eq!(out.status.code(), Some(code), "{text}: {}", self::text(&out.stderr));
        assert!(self::text(&out.stderr).contains(word), "{}", self::text(&out.stderr));
    }
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let out = vendue(&["completion", shell]);
        assert!(out.status.success() && text(&out.stdout).contains("doctor"), "{shell}");
    }
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut documents = vec![root.join("README.md"), root.join("CONTRIBUTING.md"), root.join("SECURITY.md")];
    documents.extend(fs::read_dir(root.join("docs")).unwrap().map(|e| e.unwrap().path()));
    let mut links = 0;
    for document in documents.iter().filter(|d| d.extension().is_some_and(|e| e == "md")) {
        let content = fs::read_to_string(document).unwrap();
        for link in content.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                links += 1;
                let path = document.parent().unwrap().join(target);
                assert!(path.exists(), "{}: {link} leads nowhere", document.display());
            }
        }
    }
    assert!(links > 10, "only {links} links");
}
