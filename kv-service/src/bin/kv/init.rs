//! `kv init`: the data directory of a node of a new cluster, or a whole cluster of one node.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use kv_service::config::{NodeAddress, TlsFiles};
use kv_service::{ClientConfig, Server, ServerConfig};

use crate::args::{Founding, InitArgs, NodeArgs};
use crate::cert::{CaFiles, NODE_LIFETIME, PUBLIC};
use crate::exit::Exit;
use crate::files::write_file;
use crate::node_dir::{self, Pems};
use crate::{node_config, output};

/// The name of a cluster whose founder gave it none.
const CLUSTER: &str = "kv";

/// The id of a founder. The cluster gives out the later ones.
const FOUNDER: u64 = 1;

/// The client for whom `kv init` makes a certificate.
const ADMIN: &str = "admin";

pub(crate) fn run(config: Option<&Path>, args: InitArgs) -> anyhow::Result<Exit> {
    let InitArgs { node, founding } = args;
    if let Some(advertise) = founding.advertise.clone() {
        if config.is_some() {
            bail!("give either --config or --advertise: with --advertise, the file is made");
        }
        return found(&advertise, &founding, node);
    }
    let config = node_config::read(config, node)?;
    init(&config)?;
    let others: Vec<String> = config
        .nodes
        .iter()
        .filter(|node| node.id != config.node_id)
        .map(|node| node.id.to_string())
        .collect();
    let next = if others.is_empty() {
        "Start it with `kv serve`".to_owned()
    } else {
        format!(
            "Initialise the other nodes ({}) too, then start all with `kv serve`: the first leader needs \
             all of them, from then on a majority is enough",
            others.join(", ")
        )
    };
    output::tell(
        format!(
            "initialised {} for node {} of the new cluster {}. {next}.",
            config.data_dir.display(),
            config.node_id,
            config.cluster_id,
        )
        .as_bytes(),
    );
    Ok(Exit::Done)
}

fn init(config: &ServerConfig) -> anyhow::Result<()> {
    Server::init(config).map_err(|error| anyhow!("{error}"))
}

/// Makes all that a cluster of one node needs: a CA, if there is none, the certificates of the node
/// and of an operator, the node's file and its data directory. Others join by invitation.
fn found(advertise: &str, founding: &Founding, mut args: NodeArgs) -> anyhow::Result<Exit> {
    let cluster = args.cluster.take();
    if node_config::describes_a_node(&args) {
        bail!(
            "beside --advertise give only --data-dir, --cluster, --name, --zone, --listen, --ca-dir"
        );
    }
    let dir = args.data_dir.context("--data-dir DIR is missing")?;
    let path = dir.join(node_dir::CONFIG);
    if path.exists() {
        bail!(
            "{} is the directory of a node already: name another --data-dir, or delete it if that \
             node has never run",
            dir.display()
        );
    }
    let ca_dir = &founding.ca_dir;
    let nodes = vec![NodeAddress { id: FOUNDER, address: advertise.to_owned() }];
    let name = cluster.as_deref().unwrap_or(CLUSTER);
    let mut config = node_dir::config(name, FOUNDER, nodes.clone());
    config.advertise = Some(advertise.to_owned());
    config.listen = args.listen.or_else(|| node_dir::listen(advertise));
    (config.name, config.zone) = (founding.name.clone(), founding.zone.clone());
    // A refused command leaves no CA behind.
    config.check()?;
    let ca = open_ca(ca_dir, cluster.as_deref())?;
    ca.cluster().clone_into(&mut config.cluster_id);
    let tls = ca.issuer(NODE_LIFETIME)?.issue_node(FOUNDER)?;
    let pems = Pems { ca: &tls.ca_pem, cert: &tls.cert_pem, key: &tls.key_pem };
    node_dir::write(&dir, &config, &pems)?;
    init(&ServerConfig::read(&path)?)?;
    let client = operator_file(ca_dir, &ca, nodes)?;
    let text = format!(
        "founded cluster {cluster} with node {FOUNDER}. Start the node with\n\
         kv serve --config {path}\n\
         and from another terminal talk to it, and let a second machine join:\n\
         export KV_CONFIG={client}\n\
         kv status\n\
         kv member invite --dir {ca_dir} --name NAME --address HOST:PORT\n\
         Keep {ca_dir} to yourself: with it, anyone can make the certificate of any node and client.",
        cluster = ca.cluster(),
        path = path.display(),
        client = client.display(),
        ca_dir = ca_dir.display(),
    );
    output::tell(text.as_bytes());
    Ok(Exit::Done)
}

/// Opens the CA of the cluster, or makes one.
fn open_ca(dir: &Path, cluster: Option<&str>) -> anyhow::Result<CaFiles> {
    if !CaFiles::is_there(dir) {
        CaFiles::create(dir, cluster.unwrap_or(CLUSTER))?;
    }
    let ca = CaFiles::open(dir)?;
    if let Some(cluster) = cluster.filter(|cluster| *cluster != ca.cluster()) {
        bail!(
            "the CA in {} is of cluster {}, and not of {cluster}: name another --ca-dir",
            dir.display(),
            ca.cluster()
        );
    }
    Ok(ca)
}

/// Writes the operator's certificate, if there is none, and the file by which commands find the
/// cluster.
fn operator_file(dir: &Path, ca: &CaFiles, nodes: Vec<NodeAddress>) -> anyhow::Result<PathBuf> {
    ca.write_client(dir, ADMIN)?;
    let tls = TlsFiles {
        ca: "ca.pem".into(),
        cert: format!("{ADMIN}.pem").into(),
        key: format!("{ADMIN}.key").into(),
    };
    let path = dir.join("client.toml");
    let client = ClientConfig::new(ca.cluster(), tls, nodes);
    write_file(&path, client.to_toml(), PUBLIC)?;
    Ok(path)
}
