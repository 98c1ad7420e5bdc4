//! One cluster's certificates: its authority, the API server's, the clients', the aggregation layer's.
//!
//! Everything is made fresh for each cluster and lives as long as it; nothing is shared between clusters.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use crate::error::{Error, Result};
use crate::files;
use crate::spec::{API_SERVICE_ADDRESS, Place};

/// Folder of one cluster's certificates and keys, as PEM files `<name>.crt` and `<name>.key`.
#[derive(Clone, Debug)]
pub struct Pki {
    folder: PathBuf,
}

/// A client that the API server knows by its certificate.
struct Client {
    file: &'static str,
    name: String,
    groups: Vec<&'static str>,
}

impl Pki {
    /// The certificates in a folder that [`Pki::create`] filled.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }

    /// Makes all certificates of a cluster.
    pub fn create(folder: &Path, place: &Place) -> Result<Self> {
        let pki = Self::at(folder);
        let ca = pki.authority("ca", "vendue-testbed-ca")?;
        let front = pki.authority("front-proxy-ca", "vendue-testbed-front-proxy-ca")?;
        pki.server("apiserver", "kube-apiserver", &ca, &api_server_names(place)?)?;
        let node_names = [san_ip(&place.address())?, san_dns(&place.node())?];
        pki.server("kubelet-server", &format!("system:node:{}", place.node()), &ca, &node_names)?;
        for client in clients(place) {
            pki.client(&client, &ca)?;
        }
        let proxy = Client { file: "front-proxy-client", name: "front-proxy-client".into(), groups: vec![] };
        pki.client(&proxy, &front)?;
        let account = generate("service-account")?;
        files::write_private(&pki.key("sa"), account.serialize_pem())?;
        files::write(pki.folder.join("sa.pub"), account.public_key_pem())?;
        Ok(pki)
    }

    /// Path of a certificate.
    pub fn crt(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.crt"))
    }

    /// Path of a key.
    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    fn authority(&self, file: &str, name: &str) -> Result<Issuer<'static, KeyPair>> {
        let mut params = subject(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = generate(file)?;
        let certificate = params.self_signed(&key).map_err(|e| failed(file, e))?;
        self.write(file, &certificate.pem(), &key)?;
        Ok(Issuer::new(params, key))
    }

    fn server(&self, file: &str, name: &str, ca: &Issuer<'_, KeyPair>, names: &[SanType]) -> Result<()> {
        let mut params = subject(name, &["system:nodes"]);
        params.subject_alt_names = names.to_vec();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.signed(file, params, ca)
    }

    fn client(&self, client: &Client, ca: &Issuer<'_, KeyPair>) -> Result<()> {
        let mut params = subject(&client.name, &client.groups);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.signed(client.file, params, ca)
    }

    fn signed(&self, file: &str, mut params: CertificateParams, ca: &Issuer<'_, KeyPair>) -> Result<()> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let key = generate(file)?;
        let certificate = params.signed_by(&key, ca).map_err(|e| failed(file, e))?;
        self.write(file, &certificate.pem(), &key)
    }

    fn write(&self, file: &str, certificate: &str, key: &KeyPair) -> Result<()> {
        files::write(self.crt(file), certificate)?;
        files::write_private(&self.key(file), key.serialize_pem())
    }
}

fn clients(place: &Place) -> Vec<Client> {
    let plain = |file, name: &str| Client { file, name: name.into(), groups: vec![] };
    vec![
        Client { file: "admin", name: "kubernetes-admin".into(), groups: vec!["system:masters"] },
        Client {
            file: "apiserver-kubelet",
            name: "kube-apiserver-kubelet-client".into(),
            groups: vec!["system:masters"],
        },
        Client {
            file: "kubelet",
            name: format!("system:node:{}", place.node()),
            groups: vec!["system:nodes"],
        },
        plain("controller-manager", "system:kube-controller-manager"),
        plain("scheduler", "system:kube-scheduler"),
        plain("kube-proxy", "system:kube-proxy"),
        plain("coredns", "system:coredns"),
    ]
}

fn api_server_names(place: &Place) -> Result<Vec<SanType>> {
    let mut names = Vec::new();
    for address in [place.address(), place.management().1, API_SERVICE_ADDRESS.into(), "127.0.0.1".into()] {
        names.push(san_ip(&address)?);
    }
    for dns in [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ] {
        names.push(san_dns(dns)?);
    }
    Ok(names)
}

fn subject(name: &str, groups: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut dn = DistinguishedName::new();
    for group in groups {
        dn.push(DnType::OrganizationName, *group);
    }
    dn.push(DnType::CommonName, name);
    params.distinguished_name = dn;
    params
}

fn san_ip(address: &str) -> Result<SanType> {
    let ip: IpAddr = address.parse().map_err(|e| Error::Invalid(format!("address {address}: {e}")))?;
    Ok(SanType::IpAddress(ip))
}

fn san_dns(name: &str) -> Result<SanType> {
    Ok(SanType::DnsName(name.try_into().map_err(|e| failed(name, e))?))
}

fn generate(name: &str) -> Result<KeyPair> {
    KeyPair::generate().map_err(|e| failed(name, e))
}

fn failed(name: &str, source: rcgen::Error) -> Error {
    Error::Certificate { name: name.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_every_file_and_keeps_keys_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let place = Place { market: "m".into(), cluster: "c".into(), slot: 0, index: 1 };
        let pki = Pki::create(dir.path(), &place).unwrap();
        for name in ["ca", "apiserver", "kubelet-server", "admin", "kubelet", "front-proxy-client", "coredns"]
        {
            assert!(files::read(pki.crt(name)).unwrap().contains("BEGIN CERTIFICATE"), "{name}");
            assert_eq!(
                std::fs::metadata(pki.key(name)).unwrap().permissions().mode() & 0o777,
                0o600,
                "{name}"
            );
        }
        assert!(files::read(dir.path().join("sa.pub")).unwrap().contains("PUBLIC KEY"));
    }
}
