use std::os::unix::fs::PermissionsExt;

use clap::Parser;
use kv_service::members::{MemberReport, MemberRole};
use raft_transport_quic::DevCa;

use super::*;
use crate::args::{Args, Command, MemberAction, NewMember};

/// The CA of a cluster in a directory, and a file that it has made for node 4.
struct Invited {
    root: tempfile::TempDir,
    file: PathBuf,
}

const UID: &str = "0123456789abcdef0123456789abcdef";

fn invite(flags: &str) -> anyhow::Result<Invited> {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("ca");
    let ca = DevCa::create("prod").unwrap();
    fs::create_dir(&dir).unwrap();
    let (cert, key) = (ca.cert_pem(), ca.key_pem());
    for (file, content) in [("cluster_id", "prod"), ("ca.pem", cert), ("ca.key", &key)] {
        fs::write(dir.join(file), content).unwrap();
    }
    let paths = format!("--dir {0}/ca --out {0}", root.path().display());
    let line = format!("kv member invite {paths} {flags}");
    let Command::Member(args) = Args::parse_from(line.split_whitespace()).command else {
        panic!("{line}")
    };
    let MemberAction::Invite(args) = args.action else { panic!("{line}") };
    let (uid, seeds) = (Some(UID.parse().unwrap()), member::seeds(&members()));
    let file = Desk::open(&args, "prod")?.write(4, uid, MemberInfo::default(), seeds)?;
    Ok(Invited { root, file })
}

/// Voters 1 and 2, of which the second has recorded no address.
fn members() -> ClusterReport {
    let member = |id, address: &str| MemberReport {
        id,
        info: MemberInfo { address: address.to_owned(), ..MemberInfo::default() },
        role: MemberRole::Voter,
        wants_vote: true,
        incarnation: 0,
        progress: None,
        error: None,
    };
    ClusterReport { members: vec![member(1, "kv1:7400"), member(2, "")], ..Default::default() }
}

/// The first or a later start of a node.
fn serve(invited: &Invited, flags: &str) -> anyhow::Result<ServerConfig> {
    let (file, dir) = (invited.file.display(), invited.root.path().join("node").into_os_string());
    let line = format!("kv serve --join {file} --data-dir {} {flags}", dir.display());
    let Command::Serve(args) = Args::parse_from(line.split_whitespace()).command else {
        panic!("{line}")
    };
    accept(&args.join.unwrap(), args.advertise, args.node)
}

fn refusal(invited: &Invited, flags: &str) -> String {
    format!("{:#}", serve(invited, flags).unwrap_err())
}

#[test]
fn a_node_starts_from_one_file_and_then_from_its_directory() {
    let invited = invite("").unwrap();
    let mode = fs::metadata(&invited.file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, SECRET, "it holds a key");
    let missing = refusal(&invited, "");
    assert!(missing.contains("--advertise"), "{missing}");
    let first = serve(&invited, "--advertise kv4.example.net:7400").unwrap();
    assert_eq!((first.node_id, &first.cluster_id[..], first.join), (4, "prod", true));
    assert_eq!(first.cluster_uid.unwrap().to_string(), UID);
    assert_eq!(first.nodes, [NodeAddress { id: 1, address: "kv1:7400".to_owned() }]);
    assert_eq!(first.listen_address().unwrap().port(), 7400);
    let tls = &first.tls;
    TlsConfig::read(&tls.ca, &tls.cert, &tls.key).unwrap().check().unwrap();
    assert_eq!(fs::metadata(&tls.key).unwrap().permissions().mode() & 0o777, SECRET);
    fs::remove_file(&invited.file).unwrap();
    assert_eq!(serve(&invited, "").unwrap(), first, "the file is not needed again");
    assert_eq!(serve(&invited, "--advertise kv4.example.net:7400").unwrap(), first);
    let moved = refusal(&invited, "--advertise elsewhere:7400");
    assert!(moved.contains("node.toml"), "{moved}");
    let flags = refusal(&invited, "--id 5");
    assert!(flags.contains("only --data-dir"), "{flags}");
}

/// M-K3.
#[test]
fn m_k3_an_invitation_that_is_not_for_this_directory_or_this_time_is_refused() {
    let expired = invite("--expires 1s").unwrap();
    let text = fs::read_to_string(&expired.file).unwrap();
    let line = text.lines().find(|line| line.starts_with("expires")).unwrap();
    let text = text.replace(line, "expires = \"2020-01-01T00:00:00Z\"");
    fs::write(&expired.file, text).unwrap();
    let refused = refusal(&expired, "--advertise kv4:7400");
    assert!(refused.contains("has expired") && refused.contains("kv member remove 4"), "{refused}");
    assert!(!expired.root.path().join("node").exists(), "nothing was written");

    let invited = invite("").unwrap();
    serve(&invited, "--advertise kv4:7400").unwrap();
    let text = fs::read_to_string(&invited.file).unwrap();
    fs::write(&invited.file, text.replace("node_id = 4", "node_id = 5")).unwrap();
    let other = refusal(&invited, "");
    assert!(other.contains("of node 4") && other.contains("of node 5"), "{other}");
    let other_uid = UID.replace('0', "f");
    fs::write(&invited.file, text.replace(UID, &other_uid)).unwrap();
    let other = refusal(&invited, "");
    assert!(other.contains(UID) && other.contains(&other_uid), "{other}");
    fs::write(&invited.file, "cluster_id = 7").unwrap();
    assert!(refusal(&invited, "").contains("not an invitation"));
}

#[test]
fn a_ca_of_another_cluster_invites_no_one() {
    let invited = invite("").unwrap();
    let member = NewMember { name: None, address: None, zone: None, learner: false, spare: false };
    let args = InviteArgs {
        member,
        expires: Duration::from_secs(60),
        dir: invited.root.path().join("ca"),
        out: invited.root.path().to_owned(),
    };
    let Err(error) = Desk::open(&args, "test") else { panic!("it is of another cluster") };
    assert!(error.to_string().contains("of cluster prod"), "{error}");
    let nowhere = InviteArgs { dir: PathBuf::from("no-such-directory"), ..args };
    let Err(error) = Desk::open(&nowhere, "prod") else { panic!("there is no CA") };
    assert!(format!("{error:#}").contains("kv cert ca"), "{error:#}");
}
