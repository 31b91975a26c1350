//! The content of certificates, for people and tools.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::error::QuicError;
use crate::tls::{TlsConfig, certificates};

/// The content of one certificate. It proves nothing: no signature was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// For whom it is, in words; empty if it has none.
    pub common_name: String,
    /// The DNS names that count; see [`crate::node_name`] and [`crate::client_name`].
    pub dns_names: Vec<String>,
    /// True for the certificate of a CA.
    pub is_ca: bool,
    /// The CA's number for it, in hex.
    pub serial: String,
    /// It is not valid before.
    pub valid_from: SystemTime,
    /// It is not valid after.
    pub valid_until: SystemTime,
    /// SHA-256 of the whole certificate, in hex.
    pub fingerprint: String,
}

impl CertificateInfo {
    /// Reads all certificates of a PEM text.
    ///
    /// # Errors
    /// [`QuicError::Tls`] if there is none, or if one does not parse.
    pub fn read(pem: &[u8]) -> Result<Vec<Self>, QuicError> {
        certificates(pem, "certificate")?.iter().map(|der| Self::of(der)).collect()
    }

    fn of(der: &[u8]) -> Result<Self, QuicError> {
        let unreadable = || QuicError::Tls("the certificate cannot be parsed".to_owned());
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| unreadable())?;
        let common_name = certificate.subject().iter_common_name().next();
        let alternatives = certificate.subject_alternative_name().map_err(|_| unreadable())?;
        let names = alternatives.iter().flat_map(|names| &names.value.general_names);
        let dns_names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        let validity = certificate.validity();
        Ok(Self {
            common_name: common_name
                .and_then(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned(),
            dns_names: dns_names.collect(),
            is_ca: certificate.is_ca(),
            serial: hex(certificate.raw_serial()),
            valid_from: system_time(validity.not_before).ok_or_else(unreadable)?,
            valid_until: system_time(validity.not_after).ok_or_else(unreadable)?,
            fingerprint: hex(digest(&SHA256, der).as_ref()),
        })
    }
}

impl TlsConfig {
    /// When the certificate of this side expires.
    ///
    /// # Errors
    /// Fails if the certificate does not parse.
    pub(crate) fn expires_at(&self) -> Result<SystemTime, QuicError> {
        let chain = certificates(&self.cert_pem, "certificate")?;
        expiry(&chain[0]).map_err(|reason| QuicError::Tls(reason.to_owned()))
    }
}

/// The end of a certificate's validity.
pub(crate) fn expiry(certificate: &CertificateDer<'_>) -> Result<SystemTime, &'static str> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| "the certificate cannot be parsed")?;
    system_time(certificate.validity().not_after).ok_or("the certificate ends too late to be told")
}

/// A time in a certificate; one before 1970 is long ago in any case.
fn system_time(time: ASN1Time) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{client_name, node_name, wall_clock};
    use crate::{DevCa, LEAF_LIFETIME};

    #[test]
    fn a_certificate_says_for_whom_it_is_and_for_how_long() {
        let ca = DevCa::create("dev").unwrap();
        let infos = |pem: &[u8]| CertificateInfo::read(pem).unwrap();
        let [root] = &infos(ca.cert_pem().as_bytes())[..] else { panic!("one certificate") };
        assert!(root.is_ca && root.common_name.contains("dev") && root.dns_names.is_empty());
        let node = ca.issue_node(3).unwrap();
        let [node] = &infos(&node.cert_pem)[..] else { panic!("one certificate") };
        assert_eq!(node.dns_names, [node_name("dev", 3)]);
        assert!(!node.is_ca);
        let left = node.valid_until.duration_since(wall_clock()).unwrap();
        assert!((LEAF_LIFETIME - Duration::from_secs(600)..=LEAF_LIFETIME).contains(&left));
        assert!(node.valid_from < wall_clock());
        let client = ca.issue_client("alice").unwrap();
        let [client] = &infos(&client.cert_pem)[..] else { panic!("one certificate") };
        assert_eq!(
            (&client.common_name[..], &client.dns_names[..]),
            ("alice", &[client_name("dev")][..])
        );
        assert_ne!(client.serial, node.serial);
        assert_ne!(client.fingerprint, node.fingerprint);
        assert_eq!(client.fingerprint.len(), 64);
        assert!(CertificateInfo::read(b"no certificate").is_err());
    }
}
