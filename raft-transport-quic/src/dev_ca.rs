//! A development CA, made on the spot, so that even a throw-away cluster runs with mutual TLS.
//!
//! Its certificates are valid for [`LEAF_LIFETIME`], and a client's certificate is for dialling
//! only. There is no revocation: the answer to a leaked key is a new CA. For more than development
//! use a CA of your own that puts the same names into its certificates (see [`crate::tls`]).

use std::fmt;
use std::time::Duration;

use raft_core::types::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::QuicError;
use crate::tls::{TlsConfig, check_cluster_id, client_name, node_name, wall_clock};

/// The validity of a node's or a client's certificate, unless [`DevCa::with_leaf_lifetime`] says
/// otherwise: ten years. A development cluster may lie unused for long, and has no operator.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// The validity of the CA's own certificate: ten years.
const CA_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// Certificates are valid from this long ago, for machines whose clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 60 * 60);

/// A CA for one cluster, with its key in memory.
///
/// ```
/// use raft_transport_quic::DevCa;
///
/// # fn main() -> Result<(), raft_transport_quic::QuicError> {
/// let ca = DevCa::create("example")?;
/// let node = ca.issue_node(1)?;
/// assert_eq!(node.ca_pem, ca.cert_pem().as_bytes());
/// // Stored and read again, it is the same CA.
/// let again = DevCa::from_pem("example", ca.cert_pem().as_bytes(), ca.key_pem().as_bytes())?;
/// assert_eq!(again.cert_pem(), ca.cert_pem());
/// # Ok(())
/// # }
/// ```
pub struct DevCa {
    leaf_lifetime: Duration,
    cluster_id: String,
    /// All certificates that are trusted, and the one of this CA.
    cert_pem: String,
    own_cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for DevCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevCa").field("cluster_id", &self.cluster_id).finish_non_exhaustive()
    }
}

impl DevCa {
    /// Makes a new CA.
    ///
    /// # Errors
    /// [`QuicError::ClusterId`] if the name does not fit into a certificate; [`QuicError::Tls`] if
    /// no key can be made.
    pub fn create(cluster_id: &str) -> Result<Self, QuicError> {
        check_cluster_id(cluster_id)?;
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{cluster_id} development CA"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = wall_clock();
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + CA_LIFETIME).into();
        let cert_pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self {
            leaf_lifetime: LEAF_LIFETIME,
            cluster_id: cluster_id.to_owned(),
            own_cert_pem: cert_pem.clone(),
            cert_pem,
            issuer: Issuer::new(params, key),
        })
    }

    /// Loads a stored CA. `cert_pem` may hold several certificates, as while one CA takes the place
    /// of another: all are trusted, and the CA whose key is `key_pem` issues.
    ///
    /// # Errors
    /// [`QuicError::ClusterId`] if the name does not fit into a certificate; [`QuicError::Tls`] if
    /// certificate or key do not parse, or if no certificate is of this key.
    pub fn from_pem(cluster_id: &str, cert_pem: &[u8], key_pem: &[u8]) -> Result<Self, QuicError> {
        check_cluster_id(cluster_id)?;
        let text = |pem: &[u8]| {
            String::from_utf8(pem.to_vec())
                .map_err(|_| QuicError::Tls("the development CA is not PEM".to_owned()))
        };
        let cert_pem = text(cert_pem)?;
        let key = KeyPair::from_pem(&text(key_pem)?).map_err(failed)?;
        let own = pem_blocks(&cert_pem).find(|block| is_of_key(block, &key));
        let own_cert_pem = own.map(str::to_owned).ok_or_else(|| {
            QuicError::Tls("the development CA has no certificate of its key".to_owned())
        })?;
        let issuer = Issuer::from_ca_cert_pem(&own_cert_pem, key).map_err(failed)?;
        let cluster_id = cluster_id.to_owned();
        Ok(Self { leaf_lifetime: LEAF_LIFETIME, cluster_id, cert_pem, own_cert_pem, issuer })
    }

    /// Returns the same CA; the certificates that it issues from now on are valid for `lifetime`.
    #[must_use]
    pub fn with_leaf_lifetime(mut self, lifetime: Duration) -> Self {
        self.leaf_lifetime = lifetime;
        self
    }

    /// The certificates that all nodes and clients of the cluster trust: that of this CA, and the
    /// others that were loaded with it.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The certificate of this CA alone.
    pub fn own_cert_pem(&self) -> &str {
        &self.own_cert_pem
    }

    /// The key of the CA. Secret: with it, certificates for every node and client can be made.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Issues a certificate with a new key for a node.
    ///
    /// # Errors
    /// [`QuicError::Tls`] if no key can be made.
    pub fn issue_node(&self, node_id: NodeId) -> Result<TlsConfig, QuicError> {
        let name = node_name(&self.cluster_id, node_id);
        // A node dials some of its peers and is dialled by others, with one certificate.
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&name, name.clone(), usages)
    }

    /// Issues a certificate with a new key for a client. `name` is informational; all clients of a
    /// cluster have the same rights.
    ///
    /// # Errors
    /// [`QuicError::Tls`] if no key can be made.
    pub fn issue_client(&self, name: &str) -> Result<TlsConfig, QuicError> {
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(name, client_name(&self.cluster_id), usages)
    }

    fn issue(
        &self,
        common_name: &str,
        dns_name: String,
        usages: Vec<ExtendedKeyUsagePurpose>,
    ) -> Result<TlsConfig, QuicError> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(vec![dns_name]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        let now = wall_clock();
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + self.leaf_lifetime).into();
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(TlsConfig::from_pem(
            self.cert_pem.clone().into_bytes(),
            certificate.pem().into_bytes(),
            key.serialize_pem().into_bytes(),
        ))
    }
}

/// The certificates in a PEM text, each with its lines.
fn pem_blocks(pem: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    pem.match_indices(BEGIN).map(|(begin, _)| {
        let rest = &pem[begin..];
        let next = rest[BEGIN.len()..].find(BEGIN).map_or(rest.len(), |next| BEGIN.len() + next);
        &rest[..next]
    })
}

fn is_of_key(cert_pem: &str, key: &KeyPair) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(cert_pem.as_bytes()) else { return false };
    X509Certificate::from_der(&der)
        .is_ok_and(|(_, one)| one.public_key().raw == key.subject_public_key_info())
}

fn failed(error: rcgen::Error) -> QuicError {
    QuicError::Tls(format!(
        "the development CA failed: {error}; delete its files to have a new one made"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::TlsIdentity;

    #[test]
    fn a_stored_ca_issues_as_before() {
        let ca = DevCa::create("dev").unwrap();
        let again =
            DevCa::from_pem("dev", ca.cert_pem().as_bytes(), ca.key_pem().as_bytes()).unwrap();
        let node = again.issue_node(3).unwrap();
        assert_eq!(node.identity("dev").unwrap(), TlsIdentity::Node(3));
        assert_eq!(node.ca_pem, ca.cert_pem().as_bytes());
        assert_eq!(again.issue_client("me").unwrap().identity("dev").unwrap(), TlsIdentity::Client);
        assert!(node.identity("other").is_err());
        node.server(Vec::new()).unwrap();
        node.client(Vec::new()).unwrap();
    }

    /// S18. Certificates expire, and a client's certificate is not accepted from a server.
    #[test]
    fn s18_certificates_end_and_are_for_one_use() {
        use crate::tls::Side;

        let day = Duration::from_secs(24 * 60 * 60);
        let ca = DevCa::create("dev").unwrap().with_leaf_lifetime(30 * day);
        let node = ca.issue_node(3).unwrap();
        let end = node.expires_at().unwrap().duration_since(wall_clock()).unwrap();
        assert!((29 * day..=30 * day).contains(&end), "{end:?}");
        let verifiers = node.verifiers().unwrap();
        let chain = |tls: &TlsConfig| vec![CertificateDer::from_pem_slice(&tls.cert_pem).unwrap()];
        let dialled = Side::Dialled(node_name("dev", 3));
        verifiers.verify(&dialled, &chain(&node)).unwrap();
        verifiers.verify(&Side::Dialling, &chain(&node)).unwrap();
        // The name of node 3, in a certificate for clients.
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let client = ca.issue("me", node_name("dev", 3), usages).unwrap();
        verifiers.verify(&Side::Dialling, &chain(&client)).unwrap();
        let refused = verifiers.verify(&dialled, &chain(&client)).unwrap_err().to_string();
        assert!(refused.contains("server authentication"), "{refused}");
    }

    /// M-K1. While one CA takes the place of another, both are trusted, and the key says which one
    /// issues.
    #[test]
    fn m_k1_two_cas_are_trusted_while_one_takes_the_place_of_the_other() {
        let (old, new) = (DevCa::create("dev").unwrap(), DevCa::create("dev").unwrap());
        let both = [old.cert_pem(), new.cert_pem()].concat();
        let loaded = |key: &DevCa| {
            DevCa::from_pem("dev", both.as_bytes(), key.key_pem().as_bytes()).unwrap()
        };
        for one in [&old, &new] {
            let issuing = loaded(one);
            assert_eq!(issuing.own_cert_pem(), one.cert_pem());
            let node = issuing.issue_node(3).unwrap();
            assert_eq!(node.ca_pem, both.as_bytes());
            node.check().unwrap();
            for (ca, expected) in [(&old, one), (&new, one)] {
                let [ca_pem, cert, key] =
                    [ca.cert_pem().into(), node.cert_pem.clone(), node.key_pem.clone()];
                let trusting = TlsConfig::from_pem(ca_pem, cert, key);
                let is_own = ca.cert_pem() == expected.cert_pem();
                assert_eq!(trusting.check().is_ok(), is_own, "a CA vouches for its own only");
            }
        }
        let other = DevCa::create("dev").unwrap();
        let error = DevCa::from_pem("dev", both.as_bytes(), other.key_pem().as_bytes());
        assert!(error.unwrap_err().to_string().contains("of its key"));
    }

    #[test]
    fn a_broken_ca_says_so() {
        let error = DevCa::from_pem("dev", b"nonsense", b"nonsense").unwrap_err();
        assert!(error.to_string().contains("development CA"), "{error}");
    }
}
