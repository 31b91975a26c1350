//! `kv cert`: the certificates of a cluster, made from files of a CA that stays with the operator.

mod ca_files;
mod show;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use raft_transport_quic::{CertificateInfo, DevCa, QuicError, TlsConfig, client_name, node_name};

pub(crate) use self::ca_files::{CaFiles, PUBLIC, SECRET, refuse_existing, write_new};
use self::ca_files::{Existing, TRUSTED, certificates_in};
pub(crate) use self::show::wall_clock;
use crate::args::{CaRotation, CertAction, CertArgs};
use crate::exit::Exit;
use crate::output;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Lifetimes of certificates. A node's owner plans its renewal; a client's is more often lost.
pub(crate) const NODE_LIFETIME: Duration = Duration::from_secs(365 * DAY.as_secs());
const CLIENT_LIFETIME: Duration = Duration::from_secs(90 * DAY.as_secs());

pub(crate) fn run(args: &CertArgs) -> anyhow::Result<Exit> {
    let dir = &args.dir;
    match &args.action {
        CertAction::Ca { cluster } => {
            CaFiles::create(dir, cluster)?;
            output::tell(
                format!(
                    "made the CA of cluster {cluster} in {}. Keep ca.key to yourself: it can make the \
                     certificate of any node and client",
                    dir.display()
                )
                .as_bytes(),
            );
        }
        CertAction::Node { id } => issue(args, &format!("node{id}"), &Owner::Node(*id))?,
        CertAction::Client { name } => issue(args, name, &Owner::Client(name.clone()))?,
        CertAction::Renew { names, all } => renew(args, names, *all)?,
        CertAction::Show { files, json } => return show::run(dir, files, *json),
        CertAction::RotateCa { step } => rotate(dir, *step)?,
    }
    Ok(Exit::Done)
}

/// The owner of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    Node(u64),
    Client(String),
}

impl Owner {
    /// The owner that a certificate names.
    fn of(cert_pem: &[u8], cluster: &str) -> anyhow::Result<Self> {
        let infos = CertificateInfo::read(cert_pem)?;
        let Some(info) = infos.first() else { bail!("no certificate") };
        let id = |name: &String| {
            let id = name.strip_prefix("node-")?.split_once('.')?.0.parse().ok()?;
            (*name == node_name(cluster, id)).then_some(id)
        };
        if let Some(id) = info.dns_names.iter().find_map(id) {
            return Ok(Self::Node(id));
        }
        if info.dns_names.contains(&client_name(cluster)) {
            return Ok(Self::Client(info.common_name.clone()));
        }
        bail!("it is for no node and no client of cluster {cluster}: {:?}", info.dns_names)
    }

    fn lifetime(&self) -> Duration {
        match self {
            Self::Node(_) => NODE_LIFETIME,
            Self::Client(_) => CLIENT_LIFETIME,
        }
    }

    fn issue(&self, ca: &DevCa) -> Result<TlsConfig, QuicError> {
        match self {
            Self::Node(id) => ca.issue_node(*id),
            Self::Client(name) => ca.issue_client(name),
        }
    }
}

fn issue(args: &CertArgs, name: &str, owner: &Owner) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_plain = !name.is_empty() && !name.starts_with('.') && name.chars().all(plain);
    if !is_plain || name == "ca" || name == "ca-next" {
        bail!("{name:?} names the files: use letters, digits and any of -_., and not `ca`");
    }
    let out = args.out.as_deref().unwrap_or(&args.dir);
    let files = make(args, out, name, owner, Existing::IsRefused)?;
    output::tell(format!("made {} and {}", files[0].display(), files[1].display()).as_bytes());
    Ok(())
}

impl CaFiles {
    /// Makes the certificate of a client beside the CA's own, if it is not there yet.
    pub(crate) fn write_client(&self, dir: &Path, name: &str) -> anyhow::Result<()> {
        if dir.join(format!("{name}.pem")).exists() {
            return Ok(());
        }
        let owner = Owner::Client(name.to_owned());
        let issued = owner.issue(&self.issuer(owner.lifetime())?)?;
        self.write(&issued, dir, name, Existing::IsReplaced).map(drop)
    }
}

fn make(
    args: &CertArgs,
    out: &Path,
    name: &str,
    owner: &Owner,
    existing: Existing,
) -> anyhow::Result<[PathBuf; 2]> {
    let files = CaFiles::open(&args.dir)?;
    let ca = files.issuer(args.lifetime.unwrap_or(owner.lifetime()))?;
    files.write(&owner.issue(&ca)?, out, name, existing)
}

/// Makes new certificates and keys for the same owners, in place of the present ones.
fn renew(args: &CertArgs, names: &[String], all: bool) -> anyhow::Result<()> {
    let out = args.out.as_deref().unwrap_or(&args.dir);
    let found = if all { certificates_in(out)? } else { names.to_vec() };
    if found.is_empty() {
        bail!("name the certificates, such as node1 for node1.pem, or give --all");
    }
    let cluster = CaFiles::open(&args.dir)?.cluster().to_owned();
    // All are read before one is replaced.
    let owners: Vec<(&String, Owner)> = found
        .iter()
        .map(|name| {
            let path = out.join(format!("{name}.pem"));
            let pem = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let owner = Owner::of(&pem, &cluster).with_context(|| path.display().to_string())?;
            Ok((name, owner))
        })
        .collect::<anyhow::Result<_>>()?;
    for (name, owner) in &owners {
        let [cert, key] = make(args, out, name, owner, Existing::IsReplaced)?;
        let text = format!("renewed {} and {}", cert.display(), key.display());
        output::tell(text.as_bytes());
    }
    Ok(())
}

fn rotate(dir: &Path, step: CaRotation) -> anyhow::Result<()> {
    let files = CaFiles::open(dir)?;
    let trusted = dir.join(TRUSTED);
    let trusted = trusted.display();
    let text = match step {
        CaRotation::Begin => {
            files.begin_rotation()?;
            format!(
                "{trusted} holds two CAs now, and the new one issues. Next:\n\
                 1. Copy {trusted} to every node and client. They use it within ten seconds.\n\
                 2. When all have it, renew every certificate (`kv cert renew`), and copy \
                 certificates and keys to their owners.\n\
                 3. End the trust in the old CA: `kv cert rotate-ca finish`, and copy {trusted} again."
            )
        }
        CaRotation::Finish => {
            files.finish_rotation()?;
            format!(
                "{trusted} holds the new CA alone. Copy it to every node and client: what the old \
                 CA issued is refused from then on"
            )
        }
    };
    output::tell(text.as_bytes());
    Ok(())
}
