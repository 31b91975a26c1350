use std::os::unix::fs::PermissionsExt;

use super::*;

const DEFAULT: CertArgs = CertArgs {
    action: CertAction::RotateCa { step: CaRotation::Begin },
    dir: PathBuf::new(),
    out: None,
    lifetime: None,
};

fn args(dir: &Path, action: CertAction) -> CertArgs {
    CertArgs { action, dir: dir.to_owned(), ..DEFAULT }
}

fn client(name: &str) -> CertAction {
    CertAction::Client { name: name.to_owned() }
}

fn renewal(names: &[&str]) -> CertAction {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    CertAction::Renew { names, all: false }
}

fn error(args: &CertArgs) -> String {
    format!("{:#}", run(args).unwrap_err())
}

/// The directory of a new CA.
fn ca() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("ca");
    run(&args(&dir, CertAction::Ca { cluster: "prod".to_owned() })).unwrap();
    (root, dir)
}

/// The files of an owner, read as a node or a client reads them.
fn tls(dir: &Path, name: &str) -> TlsConfig {
    let [cert, key] = ["pem", "key"].map(|kind| dir.join(format!("{name}.{kind}")));
    TlsConfig::read(&dir.join("ca.pem"), &cert, &key).unwrap()
}

#[test]
fn certificates_come_from_the_files_of_a_ca() {
    let node = CertAction::Node { id: 4 };
    let nowhere = error(&args(Path::new("no-such-directory"), node.clone()));
    assert!(nowhere.contains("kv cert ca"), "{nowhere}");
    let (root, dir) = ca();
    let mut issued = args(&dir, node);
    issued.out = Some(root.path().join("node4"));
    run(&issued).unwrap();
    let out = issued.out.clone().unwrap();
    tls(&out, "node4").check().unwrap();
    let mode = fs::metadata(out.join("node4.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, SECRET);
    let again = error(&issued);
    assert!(again.contains("is not replaced"), "{again}");
    run(&args(&dir, client("alice"))).unwrap();
    for name in ["../alice", "", ".alice", "ca", "ca-next"] {
        assert!(run(&args(&dir, client(name))).is_err(), "{name:?}");
    }
}

#[test]
fn a_renewed_certificate_is_for_the_same_owner() {
    let (root, dir) = ca();
    let out = root.path().join("node4");
    let mut node = args(&dir, CertAction::Node { id: 4 });
    node.out = Some(out.clone());
    run(&node).unwrap();
    run(&args(&dir, client("alice"))).unwrap();
    let before = [tls(&out, "node4"), tls(&dir, "alice")];
    node.action = renewal(&["node4"]);
    run(&node).unwrap();
    run(&args(&dir, CertAction::Renew { names: Vec::new(), all: true })).unwrap();
    let after = [tls(&out, "node4"), tls(&dir, "alice")];
    for (before, after) in before.iter().zip(&after) {
        after.check().unwrap();
        assert_ne!(before.key_pem, after.key_pem, "the key is new as well");
        let [before, after] =
            [before, after].map(|one| CertificateInfo::read(&one.cert_pem).unwrap().remove(0));
        assert_eq!(
            (&before.common_name, &before.dns_names),
            (&after.common_name, &after.dns_names)
        );
        assert_ne!(before.serial, after.serial);
    }
    let missing = error(&args(&dir, renewal(&["bob"])));
    assert!(missing.contains("bob.pem"), "{missing}");
    assert!(error(&args(&dir, renewal(&[]))).contains("--all"));
    // A file of another cluster, given by mistake.
    let (_other_root, other) = ca();
    fs::write(other.join("cluster_id"), "test").unwrap();
    run(&args(&other, client("carol"))).unwrap();
    fs::copy(other.join("carol.pem"), dir.join("carol.pem")).unwrap();
    let foreign = error(&args(&dir, renewal(&["alice", "carol"])));
    assert!(foreign.contains("of cluster prod"), "{foreign}");
    assert_eq!(tls(&dir, "alice").key_pem, after[1].key_pem, "nothing was renewed");
}

/// M-K1. Both CAs are trusted until every certificate is of the new one.
#[test]
fn m_k1_a_ca_is_replaced_in_two_steps() {
    let rotate = |dir: &Path, step| args(dir, CertAction::RotateCa { step });
    let (root, dir) = ca();
    let none = error(&rotate(&dir, CaRotation::Finish));
    assert!(none.contains("begin"), "{none}");
    let out = root.path().join("node4");
    let mut node = args(&dir, CertAction::Node { id: 4 });
    node.out = Some(out.clone());
    run(&node).unwrap();
    run(&args(&dir, client("alice"))).unwrap();
    let old_ca = fs::read(dir.join("ca.pem")).unwrap();
    // An earlier beginning that was interrupted before its certificate was trusted.
    fs::write(dir.join("ca-next.key"), DevCa::create("prod").unwrap().key_pem()).unwrap();
    run(&args(&dir, client("early"))).unwrap();
    fs::remove_file(dir.join("early.pem")).unwrap();
    run(&rotate(&dir, CaRotation::Begin)).unwrap();
    assert!(error(&rotate(&dir, CaRotation::Begin)).contains("under way"));
    let mode = fs::metadata(dir.join("ca-next.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, SECRET);
    let both = fs::read(dir.join("ca.pem")).unwrap();
    assert_eq!(CertificateInfo::read(&both).unwrap().len(), 2);
    tls(&dir, "alice").check().unwrap();
    let early = error(&rotate(&dir, CaRotation::Finish));
    assert!(early.contains("alice"), "{early}");
    run(&args(&dir, renewal(&["alice"]))).unwrap();
    let renewed = tls(&dir, "alice");
    renewed.check().unwrap();
    let by_old = TlsConfig::from_pem(old_ca.clone(), renewed.cert_pem, renewed.key_pem);
    assert!(by_old.check().is_err(), "the new CA issues");
    // The node's directory still trusts the old CA alone.
    assert_eq!(fs::read(out.join("ca.pem")).unwrap(), old_ca);
    node.action = renewal(&["node4"]);
    run(&node).unwrap();
    assert_eq!(fs::read(out.join("ca.pem")).unwrap(), both);
    let of_old_ca = {
        let ca_key = fs::read(dir.join("ca.key")).unwrap();
        DevCa::from_pem("prod", &old_ca, &ca_key).unwrap().issue_client("mallory").unwrap()
    };
    run(&rotate(&dir, CaRotation::Finish)).unwrap();
    assert!(!dir.join("ca-next.key").exists());
    let new_ca = fs::read(dir.join("ca.pem")).unwrap();
    assert_eq!(CertificateInfo::read(&new_ca).unwrap().len(), 1);
    tls(&dir, "alice").check().unwrap();
    let left = TlsConfig::from_pem(new_ca, of_old_ca.cert_pem, of_old_ca.key_pem);
    assert!(left.check().is_err(), "the old CA is trusted no more");
    run(&args(&dir, client("dora"))).unwrap();
    tls(&dir, "dora").check().unwrap();
}
