//! The directory of a CA.
//!
//! ```text
//! cluster_id     the name of the cluster
//! ca.pem         the certificates that nodes and clients trust: that of the CA, or of two of them
//! ca.key         the key of the CA
//! ca-next.key    the key of the CA that takes its place, from `rotate-ca begin` to `finish`
//! ```
//!
//! The key of the next CA counts once its certificate is in `ca.pem`, so each step of a rotation is
//! one rename, and a command that was interrupted is given again.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use raft_transport_quic::{CertificateInfo, DevCa, TlsConfig};

use crate::files::write_file;

pub(crate) const SECRET: u32 = 0o600;
pub(crate) const PUBLIC: u32 = 0o644;

const CLUSTER_ID: &str = "cluster_id";
pub(super) const TRUSTED: &str = "ca.pem";
const KEY: &str = "ca.key";
const NEXT_KEY: &str = "ca-next.key";

pub(crate) struct CaFiles {
    dir: PathBuf,
    cluster: String,
    trusted: Vec<u8>,
}

impl CaFiles {
    /// Returns true if the directory holds a CA, or a part of one.
    pub(crate) fn is_there(dir: &Path) -> bool {
        [CLUSTER_ID, KEY, TRUSTED].iter().any(|name| dir.join(name).exists())
    }

    /// Makes the directory of a new CA.
    pub(crate) fn create(dir: &Path, cluster: &str) -> anyhow::Result<()> {
        let ca = DevCa::create(cluster)?;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        refuse_existing(&[CLUSTER_ID, KEY, TRUSTED].map(|name| dir.join(name)))?;
        write_new(&dir.join(CLUSTER_ID), cluster.as_bytes(), PUBLIC)?;
        write_new(&dir.join(KEY), ca.key_pem().as_bytes(), SECRET)?;
        write_new(&dir.join(TRUSTED), ca.cert_pem().as_bytes(), PUBLIC)
    }

    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let read = |file: &str| {
            let path = dir.join(file);
            fs::read(&path).with_context(|| {
                format!(
                    "cannot read {}: make a CA with `kv cert ca`, or name its --dir",
                    path.display()
                )
            })
        };
        let cluster = String::from_utf8(read(CLUSTER_ID)?).context("cluster_id is not text")?;
        let cluster = cluster.trim().to_owned();
        Ok(Self { dir: dir.to_owned(), cluster, trusted: read(TRUSTED)? })
    }

    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The CA that issues; the next one, while a rotation is under way.
    pub(crate) fn issuer(&self, lifetime: Duration) -> anyhow::Result<DevCa> {
        let ca = match self.next()? {
            Some(next) => next,
            None => self.of_key(KEY)?,
        };
        Ok(ca.with_leaf_lifetime(lifetime))
    }

    fn of_key(&self, file: &str) -> anyhow::Result<DevCa> {
        let path = self.dir.join(file);
        let key = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        DevCa::from_pem(&self.cluster, &self.trusted, &key)
            .with_context(|| format!("{} and {TRUSTED} do not fit together", path.display()))
    }

    /// The CA that takes the place of this one, if a rotation is under way.
    fn next(&self) -> anyhow::Result<Option<DevCa>> {
        if !self.dir.join(NEXT_KEY).exists() {
            return Ok(None);
        }
        // A rotation that was interrupted at its beginning left a key without a certificate.
        Ok(self.of_key(NEXT_KEY).ok())
    }

    /// Makes the next CA, which is trusted beside the present one from now on, and issues.
    pub(super) fn begin_rotation(&self) -> anyhow::Result<()> {
        if self.next()?.is_some() {
            bail!(
                "a rotation is under way: renew every certificate, and end it with `kv cert \
                 rotate-ca finish`"
            );
        }
        // Fails if the present CA is damaged: a rotation would hide it.
        let present = self.of_key(KEY)?;
        let next = DevCa::create(&self.cluster)?;
        write_file(&self.dir.join(NEXT_KEY), next.key_pem().as_bytes(), SECRET)?;
        let both = [present.own_cert_pem(), next.cert_pem()].concat();
        write_file(&self.dir.join(TRUSTED), both.as_bytes(), PUBLIC)
    }

    /// Ends the trust in the previous CA.
    pub(super) fn finish_rotation(&self) -> anyhow::Result<()> {
        let Some(next) = self.next()? else {
            bail!("no rotation is under way: `kv cert rotate-ca begin` begins one");
        };
        let old = self.issued_by_others(&next)?;
        if !old.is_empty() {
            bail!(
                "the new CA does not vouch for {}: renew them with `kv cert renew`, or move their \
                 files out of {}",
                old.join(", "),
                self.dir.display()
            );
        }
        write_file(&self.dir.join(TRUSTED), next.own_cert_pem().as_bytes(), PUBLIC)?;
        let (from, to) = (self.dir.join(NEXT_KEY), self.dir.join(KEY));
        fs::rename(&from, &to).with_context(|| format!("cannot rename {}", from.display()))
    }

    /// The names of the certificates in the directory that `ca` did not issue.
    fn issued_by_others(&self, ca: &DevCa) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for name in certificates_in(&self.dir)? {
            let cert = fs::read(self.dir.join(format!("{name}.pem")))?;
            let own_ca = ca.own_cert_pem().as_bytes().to_vec();
            if TlsConfig::from_pem(own_ca, cert, Vec::new()).check().is_err() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Writes a certificate and its key, and the trusted CAs beside them.
    pub(super) fn write(
        &self,
        issued: &TlsConfig,
        out: &Path,
        name: &str,
        exists: Existing,
    ) -> anyhow::Result<[PathBuf; 2]> {
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let [cert, key] = ["pem", "key"].map(|kind| out.join(format!("{name}.{kind}")));
        if exists == Existing::IsRefused {
            refuse_existing(&[cert.clone(), key.clone()])?;
        }
        let trusted = out.join(TRUSTED);
        match fs::read(&trusted) {
            Ok(there) if there == self.trusted => {}
            // From before or during a rotation. A file of another CA is left alone.
            Ok(there) if shares_a_certificate(&there, &self.trusted) => {
                write_file(&trusted, &self.trusted, PUBLIC)?;
            }
            Ok(_) => bail!(
                "{} is of another CA: name another --out, or add the new CA to that file",
                trusted.display()
            ),
            Err(_) => write_new(&trusted, &self.trusted, PUBLIC)?,
        }
        write_file(&key, &issued.key_pem, SECRET)?;
        write_file(&cert, &issued.cert_pem, PUBLIC)?;
        Ok([cert, key])
    }
}

/// Files of the same name: refused, or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    IsRefused,
    IsReplaced,
}

/// The names of the certificates of nodes and clients: those with a key.
pub(super) fn certificates_in(dir: &Path) -> anyhow::Result<Vec<String>> {
    let files = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut names = Vec::new();
    for file in files {
        let path = file?.path();
        let is_certificate = path.extension().is_some_and(|extension| extension == "pem")
            && path.with_extension("key").exists();
        let name = path.file_stem().and_then(|name| name.to_str());
        names.extend(name.filter(|name| is_certificate && *name != "ca").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn shares_a_certificate(one: &[u8], other: &[u8]) -> bool {
    let (Ok(ones), Ok(others)) = (CertificateInfo::read(one), CertificateInfo::read(other)) else {
        return false;
    };
    ones.iter().any(|one| others.contains(one))
}

/// Refuses to go on if one of the files is there: it could be in use.
pub(crate) fn refuse_existing(paths: &[PathBuf]) -> anyhow::Result<()> {
    match paths.iter().find(|path| path.exists()) {
        Some(path) => bail!("{} is there, and is not replaced", path.display()),
        None => Ok(()),
    }
}

pub(crate) fn write_new(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.with_context(|| format!("cannot write {}", path.display()))
}
