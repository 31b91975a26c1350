//! `kv cert`: the certificates of a cluster, made from files of a CA that stays with the operator.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use raft_transport_quic::{DevCa, TlsConfig};

use crate::args::{CertAction, CertArgs};
use crate::exit::Exit;
use crate::output;

const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

pub(crate) fn run(args: &CertArgs) -> anyhow::Result<Exit> {
    let dir = &args.dir;
    match &args.action {
        CertAction::Ca { cluster } => {
            let ca = DevCa::create(cluster)?;
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            refuse_existing(&["cluster_id", "ca.key", "ca.pem"].map(|name| dir.join(name)))?;
            write_new(&dir.join("cluster_id"), cluster.as_bytes(), PUBLIC)?;
            write_new(&dir.join("ca.key"), ca.key_pem().as_bytes(), SECRET)?;
            write_new(&dir.join("ca.pem"), ca.cert_pem().as_bytes(), PUBLIC)?;
            output::tell(
                format!(
                    "made the CA of cluster {cluster} in {}. Keep ca.key to yourself: it can make the \
                     certificate of any node and client",
                    dir.display()
                )
                .as_bytes(),
            );
        }
        CertAction::Node { id } => {
            issue(args, &format!("node{id}"), |ca| ca.issue_node(*id))?;
        }
        CertAction::Client { name } => {
            issue(args, name, |ca| ca.issue_client(name))?;
        }
    }
    Ok(Exit::Done)
}

fn issue<E: std::error::Error + Send + Sync + 'static>(
    args: &CertArgs,
    name: &str,
    issue: impl FnOnce(&DevCa) -> Result<TlsConfig, E>,
) -> anyhow::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || name == "ca" || !name.chars().all(plain) {
        bail!("{name:?} names the files: use letters, digits and any of -_., and not `ca`");
    }
    let dir = &args.dir;
    let read = |file: &str| {
        let path = dir.join(file);
        fs::read(&path).with_context(|| {
            format!(
                "cannot read {}: make a CA with `kv cert ca`, or name its --dir",
                path.display()
            )
        })
    };
    let cluster = String::from_utf8(read("cluster_id")?).context("cluster_id is not text")?;
    let ca = DevCa::from_pem(cluster.trim(), &read("ca.pem")?, &read("ca.key")?)?
        .with_leaf_lifetime(args.lifetime);
    let issued = issue(&ca)?;
    let out = args.out.as_deref().unwrap_or(dir);
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let (cert, key) = (out.join(format!("{name}.pem")), out.join(format!("{name}.key")));
    refuse_existing(&[cert.clone(), key.clone()])?;
    let trusted = out.join("ca.pem");
    match fs::read(&trusted) {
        Ok(there) if there == ca.cert_pem().as_bytes() => {}
        Ok(_) => bail!(
            "{} is of another CA: name another --out, or add the new CA to that file",
            trusted.display()
        ),
        Err(_) => write_new(&trusted, ca.cert_pem().as_bytes(), PUBLIC)?,
    }
    write_new(&key, &issued.key_pem, SECRET)?;
    write_new(&cert, &issued.cert_pem, PUBLIC)?;
    let files = [&cert, &key].map(|path: &PathBuf| path.display().to_string());
    output::tell(format!("made {} and {}", files[0], files[1]).as_bytes());
    Ok(())
}

/// Refuses to go on if one of the files is there: it could be in use.
fn refuse_existing(paths: &[PathBuf]) -> anyhow::Result<()> {
    match paths.iter().find(|path| path.exists()) {
        Some(path) => bail!("{} is there, and is not replaced", path.display()),
        None => Ok(()),
    }
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn args(dir: &Path, action: CertAction) -> CertArgs {
        let lifetime = Duration::from_secs(3600);
        CertArgs { action, dir: dir.to_owned(), out: None, lifetime }
    }

    #[test]
    fn certificates_come_from_the_files_of_a_ca() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("ca");
        let node = CertAction::Node { id: 4 };
        let error = run(&args(&dir, node.clone())).unwrap_err().to_string();
        assert!(error.contains("kv cert ca"), "{error}");
        run(&args(&dir, CertAction::Ca { cluster: "prod".to_owned() })).unwrap();
        let mut issued = args(&dir, node);
        issued.out = Some(root.path().join("node4"));
        run(&issued).unwrap();
        let out = issued.out.clone().unwrap();
        let [ca, cert, key] = ["ca.pem", "node4.pem", "node4.key"].map(|name| out.join(name));
        TlsConfig::read(&ca, &cert, &key).unwrap();
        let mode = fs::metadata(out.join("node4.key")).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, SECRET);
        let again = run(&issued).unwrap_err().to_string();
        assert!(again.contains("is not replaced"), "{again}");
        let client = |name: &str| CertAction::Client { name: name.to_owned() };
        run(&args(&dir, client("alice"))).unwrap();
        assert!(run(&args(&dir, client("../alice"))).is_err());
    }
}
