//! Invitations: `kv member invite` writes all that a new node needs into one file, and `kv serve
//! --join` starts the node from it.
//!
//! Once the node's directory (`node_dir.rs`) has a `node.toml`, the invitation was accepted, and
//! its file is not needed again.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use kv_service::batch::text::json_text;
use kv_service::config::NodeAddress;
use kv_service::members::{ClusterReport, ClusterUid, MemberInfo};
use kv_service::{Cluster, ServerConfig};
use raft_transport_quic::TlsConfig;
use serde::{Deserialize, Serialize};

use crate::args::{ChangeAction, InviteArgs, MemberFlags, NodeArgs};
use crate::cert::{CaFiles, NODE_LIFETIME, SECRET, refuse_existing, wall_clock, write_new};
use crate::exit::Exit;
use crate::node_dir::{self, CONFIG, Pems};
use crate::{member, node_config, output};

/// The content of an invitation's file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Invitation {
    cluster_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster_uid: Option<ClusterUid>,
    node_id: u64,
    /// Until then a node may start from the file for the first time.
    expires: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    address: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    zone: String,
    ca: String,
    cert: String,
    key: String,
    /// Members that the node can ask.
    nodes: Vec<NodeAddress>,
}

/// Adds a member, and writes the file from which its node starts.
pub(crate) async fn invite(
    cluster: &Cluster,
    cluster_id: &str,
    args: &InviteArgs,
    flags: MemberFlags,
) -> anyhow::Result<Exit> {
    let (info, wants_vote) = (member::info(&args.member), args.member.wants_vote());
    // A failure to write the file must not leave a member behind.
    let desk = Desk::open(args, cluster_id)?;
    let members = cluster.members().await?;
    let (nodes, uid) = (member::seeds(&members), members.uid);
    if nodes.is_empty() {
        bail!("no voter has recorded its address, so a new node would find none");
    }
    refuse_existing(&[desk.file(members.next_id)])?;
    if flags.dry_run {
        let change = ChangeAction::Add(args.member.clone());
        return member::order(cluster, cluster_id, &change, flags).await;
    }
    let has_address = !info.address.is_empty();
    let id = cluster.add(info.clone(), wants_vote).await?;
    let file = match desk.write(id, uid, info, nodes) {
        Ok(file) => file,
        Err(error) => {
            output::complain(&format!(
                "node {id} was added, and has no file: {error:#}. Remove it with `kv member remove \
                 {id}`, and invite it again"
            ));
            return Ok(Exit::Unknown);
        }
    };
    if flags.json {
        let invited = Invited { id, file: file.display().to_string() };
        output::tell(json_text(&invited).as_bytes());
    } else {
        let text = format!(
            "added node {id}. Bring {} to its machine, and start the node there with\n\
             kv serve --join {} --data-dir DIR{}",
            file.display(),
            file.file_name().unwrap_or_default().display(),
            if has_address { "" } else { " --advertise HOST:PORT" },
        );
        output::tell(text.as_bytes());
    }
    if flags.wait {
        let is_member = |report: &ClusterReport| member::is_added(report, id, wants_vote);
        cluster.settled(is_member).await?;
    }
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct Invited {
    id: u64,
    file: String,
}

/// The CA and the place of the file, found to be usable before the cluster is changed.
struct Desk {
    files: CaFiles,
    out: PathBuf,
    expires: Duration,
}

impl Desk {
    fn open(args: &InviteArgs, cluster_id: &str) -> anyhow::Result<Self> {
        let files = CaFiles::open(&args.dir)?;
        if files.cluster() != cluster_id {
            bail!(
                "the CA in {} is of cluster {}, and this cluster is {cluster_id}: name another --dir",
                args.dir.display(),
                files.cluster()
            );
        }
        files.issuer(NODE_LIFETIME)?;
        let out = args.out.clone();
        fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
        Ok(Self { files, out, expires: args.expires })
    }

    fn file(&self, node_id: u64) -> PathBuf {
        self.out.join(format!("node{node_id}.kvjoin"))
    }

    /// Writes the file of a member that was added.
    fn write(
        &self,
        node_id: u64,
        cluster_uid: Option<ClusterUid>,
        info: MemberInfo,
        nodes: Vec<NodeAddress>,
    ) -> anyhow::Result<PathBuf> {
        let tls = self.files.issuer(NODE_LIFETIME)?.issue_node(node_id)?;
        let text = |pem: Vec<u8>| String::from_utf8(pem).expect("PEM is text");
        let MemberInfo { name, address, zone, .. } = info;
        let expires = wall_clock() + self.expires;
        let invitation = Invitation {
            cluster_id: self.files.cluster().to_owned(),
            cluster_uid,
            node_id,
            expires: humantime::format_rfc3339_seconds(expires).to_string(),
            name,
            address,
            zone,
            ca: text(tls.ca_pem),
            cert: text(tls.cert_pem),
            key: text(tls.key_pem),
            nodes,
        };
        let path = self.file(node_id);
        write_new(&path, invitation.to_file().as_bytes(), SECRET)?;
        Ok(path)
    }
}

impl Invitation {
    fn to_file(&self) -> String {
        let (id, cluster, expires) = (self.node_id, &self.cluster_id, &self.expires);
        let fields = toml::to_string_pretty(self).expect("every field has a form in TOML");
        format!(
            "# With this file a node joins cluster {cluster} as node {id}, until {expires}:\n\
             #   kv serve --join node{id}.kvjoin --data-dir /var/lib/kv\n\
             # It holds the node's private key. Delete it once the node has started.\n\n{fields}"
        )
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the invitation {}", path.display()))?;
        toml::from_str(&text).with_context(|| {
            format!("{} is not an invitation of `kv member invite`", path.display())
        })
    }

    fn check(&self, now: SystemTime) -> anyhow::Result<()> {
        let expires = humantime::parse_rfc3339_weak(&self.expires).context("`expires`")?;
        if now > expires {
            bail!(
                "the invitation has expired at {}. Remove the member with `kv member remove {}`, and \
                 invite it again",
                self.expires,
                self.node_id
            );
        }
        let [ca, cert, key] = [&self.ca, &self.cert, &self.key].map(|pem| pem.clone().into_bytes());
        TlsConfig::from_pem(ca, cert, key).check()?;
        Ok(())
    }

    /// Refuses a directory that another invitation has made.
    fn must_be_of(&self, config: &ServerConfig, dir: &Path) -> anyhow::Result<()> {
        let is_same = (&self.cluster_id, self.cluster_uid, self.node_id)
            == (&config.cluster_id, config.cluster_uid, config.node_id);
        if !is_same {
            let named = |cluster_id: &str, uid: Option<ClusterUid>| match uid {
                Some(uid) => format!("{cluster_id} (uid {uid})"),
                None => cluster_id.to_owned(),
            };
            bail!(
                "{} is of node {} of cluster {}, and the invitation of node {} of cluster {}: name \
                 another --data-dir",
                dir.display(),
                config.node_id,
                named(&config.cluster_id, config.cluster_uid),
                self.node_id,
                named(&self.cluster_id, self.cluster_uid)
            );
        }
        Ok(())
    }

    /// Writes the node's files. The configuration comes last.
    fn store(&self, place: Place, dir: &Path) -> anyhow::Result<()> {
        let mut config = node_dir::config(&self.cluster_id, self.node_id, self.nodes.clone());
        (config.join, config.cluster_uid) = (true, self.cluster_uid);
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        config.advertise = place.advertise.or_else(|| given(&self.address));
        config.listen = place.listen.or_else(|| node_dir::listen(config.advertise.as_deref()?));
        (config.name, config.zone) = (given(&self.name), given(&self.zone));
        config.check().context(
            "give --advertise HOST:PORT, at which the others reach this node; the invitation has no address",
        )?;
        let [ca, cert, key] = [&self.ca, &self.cert, &self.key].map(|pem| pem.as_bytes());
        node_dir::write(dir, &config, &Pems { ca, cert, key })
    }
}

/// Where the node is, as flags say it.
struct Place {
    listen: Option<SocketAddr>,
    advertise: Option<String>,
}

/// Returns the configuration of a node that an invitation started: accepts the invitation at the
/// first start, and reads the node's own file at later ones.
pub(crate) fn accept(
    file: &Path,
    advertise: Option<String>,
    args: NodeArgs,
) -> anyhow::Result<ServerConfig> {
    if node_config::describes_a_node(&args) {
        bail!("beside --join give only --data-dir, --listen and --advertise");
    }
    let dir = args.data_dir.context("--data-dir DIR is missing")?;
    let path = dir.join(CONFIG);
    let place = Place { listen: args.listen, advertise };
    if !path.exists() {
        let invitation = Invitation::read(file)?;
        invitation.check(wall_clock()).with_context(|| file.display().to_string())?;
        invitation.store(place, &dir)?;
        return Ok(ServerConfig::read(&path)?);
    }
    let config = ServerConfig::read(&path)?;
    if file.exists() {
        Invitation::read(file)?.must_be_of(&config, &dir)?;
    }
    let differs = place.listen.is_some() && place.listen != config.listen
        || place.advertise.is_some() && place.advertise != config.advertise;
    if differs {
        bail!("the node has joined already: change its addresses in {}", path.display());
    }
    Ok(config)
}

#[cfg(test)]
#[path = "invitation_tests.rs"]
mod tests;
