//! Certificates, and the identities that they prove.
//!
//! Always mutual TLS 1.3; verification cannot be turned off. Both sides trust one CA and nothing
//! else. The identity of a side is in the subject alternative names of its certificate:
//! `node-<id>.<cluster>.raft` for a node, `client.<cluster>.kv` for a client. rustls checks the
//! name of a node that is dialled. The name of a side that dials in is checked here, after rustls
//! has verified the chain.
//!
//! Sessions are not resumed, so that each connection is checked anew.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use raft_core::types::NodeId;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::{QuicError, printable};

/// Certificates and key of one node or client, PEM.
///
/// ```
/// # use raft_transport_quic::{DevCa, TlsConfig};
/// # fn main() -> Result<(), raft_transport_quic::QuicError> {
/// let issued = DevCa::create("example")?.issue_client("alice")?;
/// let tls = TlsConfig::from_pem(issued.ca_pem, issued.cert_pem, issued.key_pem);
/// assert_eq!(format!("{tls:?}"), "TlsConfig { .. }", "the key is not shown");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TlsConfig {
    /// The trusted CA certificates, one or more.
    pub ca_pem: Vec<u8>,
    /// The certificate of this side, followed by intermediate ones if there are any.
    pub cert_pem: Vec<u8>,
    /// The key of that certificate. Secret.
    pub key_pem: Vec<u8>,
    /// The files from which they are read and reloaded; `None` if they come from memory.
    files: Option<TlsFiles>,
}

/// The three files of a [`TlsConfig`].
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig").finish_non_exhaustive()
    }
}

impl TlsFiles {
    /// # Errors
    /// Those of [`TlsConfig::read`].
    pub(crate) fn read(&self) -> Result<TlsConfig, QuicError> {
        let Self { ca, cert, key } = self;
        let read = |what, path: &Path| {
            std::fs::read(path).map_err(|source| QuicError::Read {
                what,
                path: path.to_owned(),
                source,
            })
        };
        let config = TlsConfig {
            ca_pem: read("CA certificate", ca)?,
            cert_pem: read("certificate", cert)?,
            key_pem: read("private key", key)?,
            files: Some(self.clone()),
        };
        let in_file = |path: &Path| {
            let path = path.display().to_string();
            move |error: QuicError| QuicError::Tls(format!("{path}: {error}"))
        };
        config.roots().map_err(in_file(ca))?;
        config.chain().map_err(in_file(cert))?;
        config.key().map_err(in_file(key))?;
        Ok(config)
    }
}

impl TlsConfig {
    /// Takes certificates and key from memory. They are never reloaded.
    pub fn from_pem(ca_pem: Vec<u8>, cert_pem: Vec<u8>, key_pem: Vec<u8>) -> Self {
        Self { ca_pem, cert_pem, key_pem, files: None }
    }

    /// Reads the three files. They are read again while a node or a client uses them, so that a
    /// renewal needs no restart. A warning is logged if every user of the machine may read the key
    /// file.
    ///
    /// # Errors
    /// [`QuicError::Read`] names the file that cannot be read; [`QuicError::Tls`] says which of
    /// them is not what it should be.
    pub fn read(ca: &Path, cert: &Path, key: &Path) -> Result<Self, QuicError> {
        let files = TlsFiles { ca: ca.to_owned(), cert: cert.to_owned(), key: key.to_owned() };
        let config = files.read()?;
        if is_open_to_others(key) {
            tracing::warn!(
                "every user of this machine can read the private key {}; make it readable for the \
                 user of this process only (chmod 600), and replace the certificate if others may \
                 have read it",
                key.display()
            );
        }
        Ok(config)
    }

    /// Checks that the certificate is valid now, and that one of the CAs has issued it.
    ///
    /// # Errors
    /// [`QuicError::Tls`] with the reason.
    pub fn check(&self) -> Result<(), QuicError> {
        self.verifiers()?
            .verify(&Side::Dialling, &self.chain()?)
            .map_err(|error| QuicError::Tls(format!("the certificate is not trusted: {error}")))
    }

    pub(crate) fn files(&self) -> Option<&TlsFiles> {
        self.files.as_ref()
    }

    /// The identity that the certificate of this side proves in this cluster.
    ///
    /// # Errors
    /// Fails if the certificate does not parse.
    pub(crate) fn identity(&self, cluster_id: &str) -> Result<TlsIdentity, QuicError> {
        TlsIdentity::of_certificate(&self.chain()?[0], cluster_id)
            .map_err(|reason| QuicError::Tls(format!("our own certificate: {reason}")))
    }

    fn roots(&self) -> Result<RootCertStore, QuicError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca_pem, "CA certificate")? {
            roots.add(certificate).map_err(|error| {
                QuicError::Tls(format!("the CA certificate cannot be used: {error}"))
            })?;
        }
        Ok(roots)
    }

    /// At least one certificate, that of this side first.
    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, QuicError> {
        certificates(&self.cert_pem, "certificate")
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, QuicError> {
        PrivateKeyDer::from_pem_slice(&self.key_pem).map_err(|error| {
            QuicError::Tls(format!(
                "no private key found ({error}); expected PEM with a `BEGIN PRIVATE KEY` block"
            ))
        })
    }

    pub(crate) fn verifiers(&self) -> Result<Verifiers, QuicError> {
        let unusable = |error: VerifierBuilderError| {
            QuicError::Tls(format!("the CA certificate cannot be used: {error}"))
        };
        let (roots, provider) = (Arc::new(self.roots()?), provider());
        let dialling =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(unusable)?;
        let dialled = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(unusable)?;
        Ok(Verifiers { dialling, dialled })
    }

    /// The configuration of the accepting side, with the protocols that it offers.
    pub(crate) fn server(&self, offered: Vec<Vec<u8>>) -> Result<QuicServerConfig, QuicError> {
        let verifiers = self.verifiers()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifiers.dialling)
            .with_single_cert(self.chain()?, self.key()?)
            .map_err(unusable)?;
        config.alpn_protocols = offered;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        QuicServerConfig::try_from(config).map_err(|error| QuicError::Tls(error.to_string()))
    }

    /// The configuration of the dialling side, with the protocols that it offers.
    pub(crate) fn client(&self, offered: Vec<Vec<u8>>) -> Result<QuicClientConfig, QuicError> {
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, self.key()?)
            .map_err(unusable)?;
        config.alpn_protocols = offered;
        config.resumption = Resumption::disabled();
        QuicClientConfig::try_from(config).map_err(|error| QuicError::Tls(error.to_string()))
    }
}

/// The side that has dialled a connection. It decides how the other side's certificate is verified.
#[derive(Clone, Debug)]
pub(crate) enum Side {
    /// The other side has dialled.
    Dialling,
    /// This side has dialled the node of this name.
    Dialled(String),
}

/// The verifiers of the other side's chain.
pub(crate) struct Verifiers {
    dialling: Arc<dyn ClientCertVerifier>,
    dialled: Arc<dyn ServerCertVerifier>,
}

impl Verifiers {
    /// Verifies a chain as its handshake did, at the present time.
    pub(crate) fn verify(
        &self,
        side: &Side,
        chain: &[CertificateDer<'static>],
    ) -> Result<(), rustls::Error> {
        let (leaf, intermediates) =
            chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let now = UnixTime::now();
        match side {
            Side::Dialling => self.dialling.verify_client_cert(leaf, intermediates, now).map(drop),
            Side::Dialled(name) => {
                let name = ServerName::try_from(name.as_str())
                    .map_err(|_| rustls::Error::General("the name is no DNS name".to_owned()))?;
                self.dialled.verify_server_cert(leaf, intermediates, &name, &[], now).map(drop)
            }
        }
    }
}

/// The wall clock. It is used for the validity of certificates only.
#[allow(clippy::disallowed_methods, reason = "no decision of the store rests on it")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(unix)]
fn is_open_to_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
fn is_open_to_others(_path: &Path) -> bool {
    false
}

pub(crate) fn certificates(
    pem: &[u8],
    what: &str,
) -> Result<Vec<CertificateDer<'static>>, QuicError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(QuicError::Tls(format!(
            "no {what} found; expected PEM with a `BEGIN CERTIFICATE` block"
        ))),
        Err(error) => Err(QuicError::Tls(format!("the {what} is not PEM: {error}"))),
    }
}

fn unusable(error: rustls::Error) -> QuicError {
    QuicError::Tls(format!("certificate and key cannot be used: {error}; do they belong together?"))
}

/// ring, with the cheapest suite first: AES-128 saves some percent of the CPU of bulk traffic.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// Checks that the text can be one label of a DNS name.
///
/// # Errors
/// [`QuicError::ClusterId`] unless it is 1 to 63 of `a-z`, `0-9` and `-`, no `-` at either end.
pub fn check_cluster_id(cluster_id: &str) -> Result<(), QuicError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=63).contains(&cluster_id.len())
        && cluster_id.bytes().all(allowed)
        && !cluster_id.starts_with('-')
        && !cluster_id.ends_with('-');
    if fits { Ok(()) } else { Err(QuicError::ClusterId(cluster_id.to_owned())) }
}

/// The DNS name in the certificate of a node.
pub fn node_name(cluster_id: &str, node_id: NodeId) -> String {
    format!("node-{node_id}.{cluster_id}.raft")
}

/// The DNS name in the certificate of a client.
pub fn client_name(cluster_id: &str) -> String {
    format!("client.{cluster_id}.kv")
}

/// The identity that a verified certificate proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsIdentity {
    Node(NodeId),
    Client,
}

impl TlsIdentity {
    /// Reads the identity from the names of a certificate. If it has several, the first one of this
    /// cluster decides.
    ///
    /// # Errors
    /// The reason for the refusal, if no name is of the cluster.
    pub(crate) fn of_certificate(
        certificate: &CertificateDer<'_>,
        cluster_id: &str,
    ) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(certificate)
            .map_err(|_| "the certificate cannot be parsed".to_owned())?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| "the names of the certificate cannot be parsed".to_owned())?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let dns_names = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        });
        let mut other = None;
        for name in dns_names {
            match parse_name(name, cluster_id) {
                Some(identity) => return Ok(identity),
                None => other = Some(name),
            }
        }
        Err(match other {
            Some(name) => format!(
                "the certificate is for `{}`, but this is cluster `{cluster_id}`",
                printable(name)
            ),
            None => "the certificate names neither a node nor a client".to_owned(),
        })
    }

    /// Identity of the other side of a connection, and the protocol that was agreed on.
    pub(crate) fn of_connection(
        connection: &quinn::Connection,
        cluster_id: &str,
    ) -> Result<(Self, Vec<u8>), String> {
        let chain = connection
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
            .ok_or("a certificate is needed")?;
        let leaf = chain.first().ok_or("a certificate is needed")?;
        let identity = Self::of_certificate(leaf, cluster_id)?;
        let protocol = connection
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol)
            .ok_or("a protocol must be chosen (ALPN)")?;
        Ok((identity, protocol))
    }
}

fn parse_name(name: &str, cluster_id: &str) -> Option<TlsIdentity> {
    if name == client_name(cluster_id) {
        return Some(TlsIdentity::Client);
    }
    let node_id = name
        .strip_suffix(".raft")?
        .strip_suffix(cluster_id)?
        .strip_suffix('.')?
        .strip_prefix("node-")?
        .parse()
        .ok()?;
    // The name must be in its only form: no `+1`, no leading zeros, no node 0.
    (node_id != 0 && node_name(cluster_id, node_id) == name).then_some(TlsIdentity::Node(node_id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_certificate_speaks_for_whom_it_was_issued(
            cluster_id in "[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?",
            node_id in prop_oneof![1..9u64, 1u64..],
        ) {
            let ca = crate::DevCa::create(&cluster_id).unwrap();
            let node = ca.issue_node(node_id).unwrap();
            prop_assert_eq!(node.identity(&cluster_id).unwrap(), TlsIdentity::Node(node_id));
            let client = ca.issue_client("somebody").unwrap();
            prop_assert_eq!(client.identity(&cluster_id).unwrap(), TlsIdentity::Client);
            for other in [format!("{cluster_id}x"), format!("x{cluster_id}")] {
                prop_assert!(node.identity(&other).is_err());
                prop_assert!(client.identity(&other).is_err());
            }
        }
    }

    #[test]
    fn names_of_another_cluster_are_nobody() {
        assert_eq!(parse_name("node-7.alpha.raft", "alpha"), Some(TlsIdentity::Node(7)));
        assert_eq!(parse_name("client.alpha.kv", "alpha"), Some(TlsIdentity::Client));
        for name in [
            "node-7.beta.raft",
            "node-7.xalpha.raft",
            "node-7alpha.raft",
            "node-07.alpha.raft",
            "node-+7.alpha.raft",
            "node-0.alpha.raft",
            "node-.alpha.raft",
            "client.beta.kv",
            "",
        ] {
            assert_eq!(parse_name(name, "alpha"), None, "{name}");
        }
    }

    #[test]
    fn a_cluster_id_is_one_dns_label() {
        for good in ["a", "dev", "a-1", &"x".repeat(63)] {
            check_cluster_id(good).unwrap();
        }
        for bad in ["", "A", "a.b", "-a", "a-", "a_b", "ä", &"x".repeat(64)] {
            assert!(matches!(check_cluster_id(bad), Err(QuicError::ClusterId(_))), "{bad}");
        }
    }

    #[test]
    fn an_unfit_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let tls = crate::DevCa::create("dev").unwrap().issue_node(1).unwrap();
        let [ca, cert, key] =
            ["ca.pem", "cert.pem", "key.pem"].map(|name| directory.path().join(name));
        std::fs::write(&ca, &tls.ca_pem).unwrap();
        std::fs::write(&cert, &tls.cert_pem).unwrap();
        let missing = TlsConfig::read(&ca, &cert, &key).unwrap_err().to_string();
        assert!(missing.contains("key.pem") && missing.contains("check the path"), "{missing}");
        std::fs::write(&key, &tls.cert_pem).unwrap();
        let no_key = TlsConfig::read(&ca, &cert, &key).unwrap_err().to_string();
        assert!(no_key.contains("key.pem") && no_key.contains("BEGIN PRIVATE KEY"), "{no_key}");
        std::fs::write(&key, &tls.key_pem).unwrap();
        assert_eq!(TlsConfig::read(&ca, &cert, &key).unwrap().key_pem, tls.key_pem);
        let other = crate::DevCa::create("dev").unwrap().issue_node(1).unwrap();
        let mixed = TlsConfig { key_pem: other.key_pem, ..tls };
        let mixed = mixed.client(Vec::new()).err().unwrap().to_string();
        assert!(mixed.contains("belong together"), "{mixed}");
    }

    /// S18. A key that every user of the machine can read is noticed.
    #[cfg(unix)]
    #[test]
    fn s18_an_open_key_file_is_noticed() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key.pem");
        std::fs::write(&key, "key").unwrap();
        for (mode, is_open) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(is_open_to_others(&key), is_open, "{mode:o}");
        }
        assert!(!is_open_to_others(&directory.path().join("nothing")));
    }

    #[test]
    fn debug_hides_the_key() {
        let config = TlsConfig::from_pem(b"ca".to_vec(), b"cert".to_vec(), b"secret".to_vec());
        assert_eq!(format!("{config:?}"), "TlsConfig { .. }");
    }
}
