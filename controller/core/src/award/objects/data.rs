//! Secrets, the volume and the Service of a workload.
//!
//! Invariant: what the user sent (environment, files) is only in Secrets of the award's namespace and goes with it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, Secret, Service, ServicePort, ServiceSpec,
    VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use vendue_crds::{Award, names};

use super::pods::{DASHBOARD_PORT, GCS_PORT, HEAD_ROLE};
use super::{Parts, Tokens, meta};

/// Name of the Secret with the environment of head and workers.
pub const ENV_SECRET: &str = "vendue-env";
/// Name of the Secret with the Job's files.
pub const FILES_SECRET: &str = "vendue-files";
/// Name of the claim of the award's volume.
pub const VOLUME_CLAIM: &str = "vendue-award";

fn secret(award: &Award, name: &str, data: BTreeMap<String, ByteString>) -> Secret {
    Secret {
        metadata: meta(award, name, None),
        data: Some(data),
        immutable: Some(true),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

fn bytes<'a>(list: impl Iterator<Item = (&'a String, &'a String)>) -> BTreeMap<String, ByteString> {
    list.map(|(k, v)| (k.clone(), ByteString(v.clone().into_bytes()))).collect()
}

/// Tokens of Ray and of the courier.
pub(super) fn tokens(award: &Award, tokens: &Tokens) -> Secret {
    let data = [(names::RAY_TOKEN_KEY, &tokens.ray), (names::COURIER_TOKEN_KEY, &tokens.courier)];
    let data = data.into_iter().map(|(k, v)| (k.to_owned(), ByteString(v.clone().into_bytes())));
    secret(award, names::TOKENS_SECRET, data.collect())
}

/// Plain and secret environment alike: a Secret keeps both out of the Pods' spec.
pub(super) fn environment(parts: Parts<'_>) -> Secret {
    secret(parts.award, ENV_SECRET, bytes(parts.train.env.iter().chain(&parts.train.secret_env)))
}

/// The files of the Job.
pub(super) fn files(parts: Parts<'_>) -> Secret {
    secret(parts.award, FILES_SECRET, bytes(parts.train.files.iter()))
}

/// The volume that head and workers share; all of them run on one node, so one node's claim is enough.
pub(super) fn claim(parts: Parts<'_>) -> PersistentVolumeClaim {
    let size = Quantity(format!("{}Mi", parts.train.volume_mib));
    PersistentVolumeClaim {
        metadata: meta(parts.award, VOLUME_CLAIM, None),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: Some(parts.terms.storage_class_name.clone()),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), size)])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// The head's address. It resolves before the head is ready, so that workers join as soon as the head listens.
pub(super) fn service(parts: Parts<'_>) -> Service {
    let port = |name: &str, port: i32| ServicePort {
        name: Some(name.to_owned()),
        port,
        target_port: Some(IntOrString::Int(port)),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    let selector = BTreeMap::from([
        (names::AWARD_ID.to_owned(), parts.award.spec.id.clone()),
        (names::ROLE.to_owned(), HEAD_ROLE.to_owned()),
    ]);
    Service {
        metadata: meta(parts.award, names::HEAD_SERVICE, None),
        spec: Some(ServiceSpec {
            selector: Some(selector),
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![
                port("gcs", GCS_PORT),
                port("dashboard", DASHBOARD_PORT),
                port("courier", i32::from(names::COURIER_PORT)),
            ]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}
