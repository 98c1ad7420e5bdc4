use std::os::unix::fs::symlink;
use std::path::Path;

use axum::body::Body;
use axum::http::Request as HttpRequest;
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;

const TOKEN: &str = "0123456789abcdef";

struct Fixture {
    _dir: tempfile::TempDir,
    router: Router,
}

fn write(root: &Path, path: &str, data: &[u8]) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, data).unwrap();
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root, "secret", b"secret");
    write(root, "volume/outputs/model.pt", b"weights");
    write(root, "volume/outputs/deep/er/metrics.json", b"{}");
    write(root, "volume/checkpoints/c1", b"not an output");
    symlink(root.join("secret"), root.join("volume/outputs/link")).unwrap();
    symlink(root, root.join("volume/outputs/dirlink")).unwrap();
    write(root, "ray/session_2/logs/job-driver-vendue-u-2.log", b"second\n");
    write(root, "ray/session_1/logs/job-driver-vendue-u-1.log", b"first\n");
    write(root, "ray/session_2/logs/job-driver-vendue-u-10.log", b"tenth\n");
    write(root, "ray/session_2/logs/raylet.out", b"not the driver");
    symlink("session_2", root.join("ray/session_latest")).unwrap();
    let router = router(TOKEN.to_owned(), root.join("volume/outputs"), root.join("ray"));
    Fixture { _dir: dir, router }
}

async fn ask(fixture: &Fixture, uri: &str, token: Option<&str>) -> (StatusCode, Vec<u8>, Option<String>) {
    let mut request = HttpRequest::get(uri);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let response = fixture.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let size = response.headers().get(LOG_SIZE).map(|v| v.to_str().unwrap().to_owned());
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes().to_vec(), size)
}

#[tokio::test]
async fn nobody_without_the_token() {
    let f = fixture();
    for uri in ["/v1/log", "/v1/manifest", "/v1/file?path=model.pt"] {
        for token in
            [None, Some(""), Some("0123456789abcdeX"), Some("0123456789abcde"), Some("0123456789abcdef0")]
        {
            assert_eq!(ask(&f, uri, token).await.0, StatusCode::UNAUTHORIZED, "{uri} {token:?}");
        }
    }
    assert_eq!(ask(&f, "/healthz", None).await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_manifest_has_regular_files_only() {
    let f = fixture();
    let (status, body, _) = ask(&f, "/v1/manifest", Some(TOKEN)).await;
    assert_eq!(status, StatusCode::OK);
    let manifest: Manifest = serde_json::from_slice(&body).unwrap();
    let paths: Vec<_> = manifest.files.iter().map(|f| (f.path.as_str(), f.size)).collect();
    assert_eq!(paths, [("deep/er/metrics.json", 2), ("model.pt", 7)]);
    assert_eq!(
        ask(&f, "/v1/manifest", Some(TOKEN)).await.1,
        body,
        "the second answer uses remembered digests"
    );
}

#[tokio::test]
async fn files_by_path_and_offset() {
    let f = fixture();
    assert_eq!(ask(&f, "/v1/file?path=model.pt&offset=2", Some(TOKEN)).await.1, b"ights");
    assert_eq!(ask(&f, "/v1/file?path=model.pt&offset=99", Some(TOKEN)).await.1, b"");
    assert_eq!(ask(&f, &format!("/v1/file?path=model.pt&offset={}", u64::MAX), Some(TOKEN)).await.1, b"");
    assert_eq!(ask(&f, "/v1/file?path=nothing", Some(TOKEN)).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn no_way_out_of_the_folder() {
    let f = fixture();
    for path in [
        "../checkpoints/c1",
        "..%2Fcheckpoints%2Fc1",
        "/etc/passwd",
        "link",
        "dirlink/secret",
        "deep/../model.pt",
        "deep/er",
        "",
        "deep//er",
        "model.pt%00",
    ] {
        let (status, body, _) = ask(&f, &format!("/v1/file?path={path}"), Some(TOKEN)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {}", String::from_utf8_lossy(&body));
    }
}

#[tokio::test]
async fn the_log_is_all_attempts_in_order() {
    let f = fixture();
    let whole = b"first\nsecond\ntenth\n";
    for offset in 0..=whole.len() {
        let (_, body, size) = ask(&f, &format!("/v1/log?offset={offset}"), Some(TOKEN)).await;
        assert_eq!(body, &whole[offset..], "{offset}");
        assert_eq!(size.unwrap(), whole.len().to_string());
    }
}
