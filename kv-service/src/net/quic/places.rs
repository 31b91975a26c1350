//! Shares of the client connections: how many one certificate, and one address, may hold.
//!
//! Without these shares a single client could take all connections of a node and lock out the
//! others. A certificate is counted by its digest, since all clients of a cluster carry the same
//! name. An IPv6 address is counted by its /64, which is the network that one customer of a
//! provider gets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// SHA-256 of a certificate.
pub(crate) type CertificateDigest = [u8; 32];

/// The connections of one node, counted by certificate and by address.
pub(crate) struct Places {
    per_certificate_max: usize,
    per_address_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    by_certificate: BTreeMap<CertificateDigest, usize>,
    by_network: BTreeMap<Network, usize>,
}

/// An IPv4 address, or the first half of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Network {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Network {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Network::V4(address.octets()),
            IpAddr::V6(address) => {
                let octets = address.octets();
                Network::V6(*octets.first_chunk().expect("an IPv6 address has 16 bytes"))
            }
        }
    }
}

/// The place of one connection; dropping it gives the place back.
pub(crate) struct Place {
    places: Arc<Places>,
    certificate: CertificateDigest,
    network: Network,
}

impl Places {
    pub(crate) fn new(per_certificate_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { per_certificate_max, per_address_max, taken: Mutex::default() })
    }

    /// Takes a place.
    ///
    /// # Errors
    /// Text that names the share that is used up. Nothing was taken then.
    pub(crate) fn take(
        self: &Arc<Self>,
        certificate: CertificateDigest,
        address: IpAddr,
    ) -> Result<Place, String> {
        let network = Network::of(address);
        let mut taken = self.lock();
        let of_certificate = taken.by_certificate.get(&certificate).copied().unwrap_or(0);
        let of_network = taken.by_network.get(&network).copied().unwrap_or(0);
        if of_certificate >= self.per_certificate_max {
            return Err(format!(
                "this certificate has {of_certificate} connections, the limit of this node; close \
                 some, or raise limits.certificate_connections_max"
            ));
        }
        if of_network >= self.per_address_max {
            return Err(format!(
                "this address has {of_network} connections, the limit of this node; close some, or \
                 raise limits.address_connections_max"
            ));
        }
        *taken.by_certificate.entry(certificate).or_default() += 1;
        *taken.by_network.entry(network).or_default() += 1;
        Ok(Place { places: Arc::clone(self), certificate, network })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Held for single steps only; none of them panics half-way.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        give_back(&mut taken.by_certificate, &self.certificate);
        give_back(&mut taken.by_network, &self.network);
    }
}

fn give_back<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    let count = counts.get_mut(key).expect("a place is counted until it is dropped");
    *count -= 1;
    // Entries that stayed would pile up, one for each address that ever connected.
    if *count == 0 {
        counts.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// S11. One certificate cannot take the places of all others, and neither can one address.
    #[test]
    fn a_certificate_and_an_address_have_a_share_each() {
        let places = Places::new(2, 3);
        let (one, other) = ([1; 32], [2; 32]);
        let first = places.take(one, ip("10.0.0.1")).unwrap();
        let _second = places.take(one, ip("10.0.0.1")).unwrap();
        let refused = places.take(one, ip("10.0.0.2")).err().unwrap();
        assert!(refused.contains("certificate_connections_max"), "{refused}");
        let _third = places.take(other, ip("::ffff:10.0.0.1")).unwrap();
        let refused = places.take(other, ip("10.0.0.1")).err().unwrap();
        assert!(refused.contains("address_connections_max"), "{refused}");
        let _fourth = places.take(other, ip("10.0.0.2")).unwrap();
        drop(first);
        places.take(one, ip("10.0.0.1")).unwrap();
    }

    /// S11. A host of IPv6 has 2^64 addresses; they count as one.
    #[test]
    fn addresses_of_one_ipv6_network_count_together() {
        let places = Places::new(10, 1);
        let place = places.take([1; 32], ip("2001:db8:1:2::1")).unwrap();
        assert!(places.take([1; 32], ip("2001:db8:1:2:ffff::9")).is_err());
        let _beside = places.take([1; 32], ip("2001:db8:1:3::1")).unwrap();
        drop(place);
        let _again = places.take([1; 32], ip("2001:db8:1:2:ffff::9")).unwrap();
    }

    #[test]
    fn what_is_given_back_leaves_nothing() {
        let places = Places::new(2, 2);
        drop(places.take([1; 32], ip("10.0.0.1")).unwrap());
        let taken = places.lock();
        assert!(taken.by_certificate.is_empty() && taken.by_network.is_empty());
    }
}
