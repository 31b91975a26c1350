//! The one place that picks backends.

use std::sync::Arc;

use raft_core::storage::Storage;
use raft_core::transport::Transport;
use tokio::sync::mpsc;

use super::membership::MemberDirectory;
use super::room::IsLow;
use crate::config::{ServerConfig, StorageKind};
use crate::error::{ServerError, Unavailable};
use crate::members::ClusterUid;
use crate::net::peers::{NodeIdentity, PeerBook};
use crate::net::stream::{Connector, Stream};
use crate::protocol::version::{VERSION_MAX, VERSION_MIN};
use crate::rng::NodeRng;
use crate::state::KvMachine;

#[cfg(feature = "channel")]
use crate::net::local::LocalNetwork;
#[cfg(feature = "memory")]
use raft_storage::memory::MemoryDisk;

/// Where a node keeps log, hard state, snapshots and state.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Store {
    /// On a disk in memory. A node that comes back on the same disk has lost nothing.
    #[cfg(feature = "memory")]
    Memory(MemoryDisk),
    /// In the data directory.
    #[cfg(feature = "rocksdb")]
    RocksDb,
}

/// The network over which nodes and clients talk.
#[derive(Clone)]
#[non_exhaustive]
pub enum Network {
    /// Within this process.
    #[cfg(feature = "channel")]
    Channel(LocalNetwork),
    /// UDP, with mutual TLS.
    #[cfg(feature = "quic")]
    Quic,
}

const VERSIONS: (u32, u32) = (VERSION_MIN, VERSION_MAX);

/// The parts of a node, for a caller that has a storage or a network of its own: see
/// [`Server::start_on`](crate::Server::start_on).
#[non_exhaustive]
pub struct Backends {
    /// Log, hard state and snapshots; must pass [`raft_core::testing`]'s suite.
    pub storage: Arc<dyn Storage>,
    /// The state; in memory unless it is replaced.
    pub machine: KvMachine,
    /// Messages between nodes; must pass [`raft_core::testing`]'s suite.
    pub transport: Arc<dyn Transport>,
    /// Streams from this node's own client to the nodes.
    pub connector: Arc<dyn Connector>,
    /// Seed of all random choices of the node. It must be a new one at each start, or elections may
    /// not end.
    pub seed: u64,
    /// Returns true while the disk is nearly full; the node then accepts no writes but deletes.
    /// `None`: the disk is never full.
    pub is_low: Option<IsLow>,
    /// Told who the members are, and where, when they change. `None`: the transport and the
    /// connector find every member by its id.
    pub peer_book: Option<Arc<dyn PeerBook>>,
    /// Identifies the disk of a node that joins a cluster: drawn at random when the disk was first
    /// used, and stored on it. 0: the node was not added to a running cluster.
    pub incarnation: u64,
    pub(crate) directory: Option<Arc<dyn MemberDirectory>>,
    /// As far as the node knows it when it starts.
    pub(crate) cluster_uid: Option<ClusterUid>,
    /// Draws the nonces of sessions: from the system, unless a run has to repeat itself.
    pub(crate) rng: NodeRng,
    /// The oldest and the newest cluster version that the program supports. Tests of upgrades take
    /// the newest versions away.
    #[doc(hidden)]
    pub versions: (u32, u32),
}

impl Backends {
    /// Takes backends of the caller, and adds a state in memory and a seed from the system.
    ///
    /// # Errors
    /// The system has no entropy.
    pub fn new(
        storage: Arc<dyn Storage>,
        transport: Arc<dyn Transport>,
        connector: Arc<dyn Connector>,
    ) -> Result<Self, ServerError> {
        let seed = u64::from_be_bytes(random_bytes()?);
        let machine = KvMachine::memory();
        let rng = NodeRng::from_system();
        Ok(Self {
            storage,
            machine,
            transport,
            connector,
            seed,
            is_low: None,
            peer_book: None,
            incarnation: 0,
            directory: None,
            cluster_uid: None,
            rng,
            versions: VERSIONS,
        })
    }
}

/// Returns the store that the configuration names, and the default network.
#[allow(unreachable_code, reason = "a build for clients alone has no store")]
pub(crate) fn by_default(config: &ServerConfig) -> Result<(Store, Network), ServerError> {
    Ok((store_of(config.storage)?, network_by_default()?))
}

/// Makes the data directory of a node of a new cluster.
pub(crate) fn init(config: &ServerConfig) -> Result<(), ServerError> {
    match config.storage {
        #[cfg(feature = "rocksdb")]
        StorageKind::RocksDb => {
            let ServerConfig { data_dir, cluster_id, node_id, .. } = config;
            raft_storage::DataDir::initialise(data_dir, cluster_id, *node_id)?;
            Ok(())
        }
        #[cfg(not(feature = "rocksdb"))]
        StorageKind::RocksDb => Err(Unavailable::NotBuiltIn("storage rocksdb").into()),
        StorageKind::Memory => Err(Unavailable::NoDirectory.into()),
    }
}

fn store_of(kind: StorageKind) -> Result<Store, ServerError> {
    match kind {
        #[cfg(feature = "rocksdb")]
        StorageKind::RocksDb => Ok(Store::RocksDb),
        #[cfg(feature = "memory")]
        // The disk holds no promise of an earlier run, and does not show whether there was one. As
        // a new member the node founds a cluster only if all others are new as well.
        StorageKind::Memory => Ok(Store::Memory(MemoryDisk::of_new_member())),
        #[cfg(not(feature = "rocksdb"))]
        StorageKind::RocksDb => Err(Unavailable::NotBuiltIn("storage rocksdb").into()),
        #[cfg(not(feature = "memory"))]
        StorageKind::Memory => Err(Unavailable::NotBuiltIn("storage memory").into()),
    }
}

#[cfg(feature = "quic")]
fn network_by_default() -> Result<Network, ServerError> {
    Ok(Network::Quic)
}

#[cfg(not(feature = "quic"))]
fn network_by_default() -> Result<Network, ServerError> {
    Err(Unavailable::NotBuiltIn("quic").into())
}

#[allow(
    unused_variables,
    unreachable_code,
    reason = "not every combination of backends uses everything, and one for clients alone nothing"
)]
pub(crate) async fn build(
    config: &ServerConfig,
    store: Store,
    network: Network,
    accept_sender: mpsc::Sender<Stream>,
) -> Result<Backends, ServerError> {
    let opened: Opened = match store {
        #[cfg(feature = "memory")]
        Store::Memory(disk) => Opened {
            incarnation: disk.incarnation(fresh_number(&network)?),
            storage: Arc::new(disk.storage()),
            machine: KvMachine::memory(),
            identity: None,
            is_low: None,
            directory: None,
        },
        #[cfg(feature = "rocksdb")]
        Store::RocksDb => open_rocksdb(config).await?,
    };
    let networked: Networked = match network {
        #[cfg(feature = "channel")]
        Network::Channel(local) => {
            let crate::net::local::Joined { transport, connector, seed } =
                local.join(config, opened.incarnation, accept_sender);
            let rng = NodeRng::from_seed(!seed);
            Networked { transport, connector, peer_book: None, cluster_uid: None, seed, rng }
        }
        #[cfg(feature = "quic")]
        Network::Quic => {
            let identity = match opened.identity {
                Some(identity) => identity,
                None => fleeting_identity(config, opened.incarnation)?,
            };
            let seed = u64::from_be_bytes(random_bytes()?);
            let joined = crate::net::quic::join(config, &identity, accept_sender).await?;
            let (transport, connector) = joined;
            let peer_book = Some(Arc::clone(&transport) as Arc<dyn PeerBook>);
            let (cluster_uid, rng) = (identity.cluster_uid, NodeRng::from_system());
            Networked { transport, connector, peer_book, cluster_uid, seed, rng }
        }
    };
    Ok(Backends {
        storage: opened.storage,
        machine: opened.machine,
        transport: networked.transport,
        connector: networked.connector,
        seed: networked.seed,
        is_low: opened.is_low,
        peer_book: networked.peer_book,
        incarnation: opened.incarnation,
        directory: opened.directory,
        cluster_uid: networked.cluster_uid,
        rng: networked.rng,
        versions: VERSIONS,
    })
}

struct Networked {
    transport: Arc<dyn Transport>,
    connector: Arc<dyn Connector>,
    peer_book: Option<Arc<dyn PeerBook>>,
    cluster_uid: Option<ClusterUid>,
    seed: u64,
    rng: NodeRng,
}

struct Opened {
    storage: Arc<dyn Storage>,
    machine: KvMachine,
    /// `None` for a node that leaves nothing behind.
    #[allow(dead_code, reason = "nodes in one process know each other without it")]
    identity: Option<NodeIdentity>,
    /// Identifies the disk, also one in memory.
    incarnation: u64,
    is_low: Option<IsLow>,
    directory: Option<Arc<dyn MemberDirectory>>,
}

/// Returns the identity of a node that leaves nothing behind.
#[cfg(feature = "quic")]
fn fleeting_identity(config: &ServerConfig, incarnation: u64) -> Result<NodeIdentity, ServerError> {
    // Such a node cannot tell its first start from a later one: lists of members are compared, as
    // at every first start.
    let cluster_uid = config.cluster_uid;
    Ok(NodeIdentity { incarnation, reset_key: random_bytes()?, is_founder: true, cluster_uid })
}

/// A number that no other disk has.
#[cfg(feature = "memory")]
fn fresh_number(network: &Network) -> Result<u64, ServerError> {
    match *network {
        #[cfg(feature = "channel")]
        Network::Channel(ref local) => Ok(local.fresh_number()),
        #[cfg(feature = "quic")]
        Network::Quic => Ok(u64::from_be_bytes(random_bytes()?)),
    }
}

fn random_bytes<const COUNT: usize>() -> Result<[u8; COUNT], ServerError> {
    let mut random = [0; COUNT];
    getrandom::fill(&mut random).map_err(|error| {
        let of_system = error.raw_os_error().map(std::io::Error::from_raw_os_error);
        let error = of_system.unwrap_or_else(|| std::io::Error::other(error.to_string()));
        Unavailable::Entropy(Arc::new(error))
    })?;
    Ok(random)
}

/// A node's directory, for as long as its storage holds it.
#[cfg(feature = "rocksdb")]
struct WeakDirectory(std::sync::Weak<raft_storage::DataDir>);

#[cfg(feature = "rocksdb")]
impl MemberDirectory for WeakDirectory {
    fn mark_removed(&self) -> std::io::Result<()> {
        let dir = self.0.upgrade();
        dir.map_or(Ok(()), |dir| dir.mark_removed().map_err(std::io::Error::other))
    }

    fn set_cluster_uid(&self, uid: ClusterUid) -> std::io::Result<()> {
        let noted = self.0.upgrade().map_or(Ok(()), |dir| dir.set_cluster_uid(uid.number()));
        noted.map_err(std::io::Error::other)
    }
}

#[cfg(feature = "rocksdb")]
async fn open_rocksdb(config: &ServerConfig) -> Result<Opened, ServerError> {
    use raft_storage::DataDir;
    use raft_storage::rocksdb::{RocksOptions, RocksStorage};

    use crate::state::RocksStateOptions;

    let config = config.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let dir = DataDir::open(&config.data_dir, &config.cluster_id, config.node_id)?;
        if dir.was_removed()? {
            return Err(super::membership::End::Removed.error(&config));
        }
        if let Some(uid) = config.cluster_uid {
            dir.expect_cluster_uid(uid.number())?;
        }
        let dir = Arc::new(dir);
        let machine = KvMachine::rocksdb(&dir.state_dir(), RocksStateOptions::default())
            .map_err(|error| ServerError::Fatal(Arc::new(error.into())))?;
        let storage = RocksStorage::open(Arc::clone(&dir), RocksOptions::default())?;
        let incarnation = dir.incarnation();
        let identity = NodeIdentity {
            incarnation,
            reset_key: *dir.reset_key(),
            is_founder: dir.was_initialised(),
            cluster_uid: ClusterUid::new(dir.cluster_uid()).or(config.cluster_uid),
        };
        // The directory is released with the storage, even if a caller still holds the server.
        let directory = Arc::new(WeakDirectory(Arc::downgrade(&dir)));
        let is_low: IsLow = Arc::new(move || {
            let is_low = dir.is_low().unwrap_or(false);
            if !is_low {
                // If the ballast cannot be made now, the next check tries again.
                let _ = dir.keep_ballast();
            }
            is_low
        });
        Ok(Opened {
            storage: Arc::new(storage),
            machine,
            identity: Some(identity),
            incarnation,
            is_low: Some(is_low),
            directory: Some(directory),
        })
    });
    match opening.await {
        Ok(opened) => opened,
        Err(error) => Err(Unavailable::Opening(Arc::new(error)).into()),
    }
}
