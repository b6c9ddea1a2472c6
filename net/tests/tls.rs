//! Certificates as files: made, loaded, checked, replaced while running.

#![allow(clippy::unwrap_used, reason = "a test whose scene cannot be set has failed")]

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use graven_net::tls::{
    self, Authority, Identity, Issued, Reload, Role, TlsError, TlsFiles, TlsIdentity, UnixTime, Validity,
};

const CLUSTER: u128 = 0xfeed;

fn place(dir: &Path, authority: &Authority, issued: &Issued) -> TlsFiles {
    let files = TlsFiles { ca: dir.join("ca.crt"), certificate: dir.join("own.crt"), key: dir.join("own.key") };
    for (file, text) in [
        (&files.ca, authority.certificate_pem()),
        (&files.certificate, &issued.certificate_pem),
        (&files.key, &issued.key_pem),
    ] {
        fs::write(file, text).unwrap();
    }
    files
}

fn node(authority: &Authority) -> Issued {
    authority.issue_node("n1", 1, ["127.0.0.1:5470", "host.example:1"]).unwrap()
}

fn last_year() -> Validity {
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    Validity { not_before: now - day * 400, not_after: now - day * 30 }
}

#[test]
fn authority_reads_back_what_it_saved_and_its_key_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let made = Authority::create(CLUSTER).unwrap();
    made.save(dir.path()).unwrap();
    let loaded = Authority::load(dir.path()).unwrap();
    assert_eq!(loaded.cluster(), CLUSTER);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // What the loaded one signs is vouched for by the certificate that was saved.
    let issued = loaded.issue_client("loader", Role::Append).unwrap();
    TlsIdentity::load(place(dir.path(), &made, &issued)).unwrap();
    assert!(made.save(dir.path()).unwrap_err().to_string().contains("never overwritten"));
}

#[test]
fn authority_with_another_ones_key_is_refused() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Authority::create(1).unwrap().save(a.path()).unwrap();
    Authority::create(2).unwrap().save(b.path()).unwrap();
    fs::copy(b.path().join("ca.key"), a.path().join("ca.key")).unwrap();
    let error = Authority::load(a.path()).err().unwrap().to_string();
    assert!(error.contains("do not belong together"), "{error}");
}

#[test]
fn identity_stands_in_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(CLUSTER).unwrap();
    let identity = TlsIdentity::load(place(dir.path(), &authority, &node(&authority))).unwrap();
    let current = identity.current();
    let Identity::Node(found) = current.identity() else { panic!("not a node: {}", current.identity()) };
    assert_eq!((found.cluster, found.node, found.name.as_str()), (CLUSTER, 1, "n1"));
    let years = (current.not_after().0 - UnixTime::now().0) / (365 * 86_400);
    assert!((1..=2).contains(&years), "valid until {}", current.not_after());
}

#[test]
fn names_and_ids_that_cannot_be_are_not_signed() {
    let authority = Authority::create(CLUSTER).unwrap();
    assert!(authority.issue_node("n/1", 1, [""; 0]).is_err());
    assert!(authority.issue_node("n1", 0, [""; 0]).is_err());
    assert!(authority.issue_node("n1", 1, ["bad host"]).is_err());
    assert!(authority.issue_client("", Role::Read).is_err());
}

#[test]
fn expired_certificate_is_named_with_its_date() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(CLUSTER).unwrap().with_validity(last_year());
    let error = TlsIdentity::load(place(dir.path(), &authority, &node(&authority))).unwrap_err();
    let TlsError::Expired { not_after, .. } = &error else { panic!("{error}") };
    let text = error.to_string();
    assert!(text.contains("own.crt") && text.contains("n1") && text.contains(&not_after.to_string()), "{text}");
}

#[test]
fn every_wrong_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::create(CLUSTER).unwrap(), Authority::create(2).unwrap());
    let good = node(&ours);
    let files = place(dir.path(), &ours, &good);
    let expect = |contains: &[&str]| {
        let text = TlsIdentity::load(files.clone()).unwrap_err().to_string();
        assert!(contains.iter().all(|part| text.contains(part)), "{text}");
    };
    fs::write(&files.key, &node(&ours).key_pem).unwrap();
    expect(&["own.key", "is not the key of"]);
    fs::write(&files.key, "nothing").unwrap();
    expect(&["own.key"]);
    fs::remove_file(&files.key).unwrap();
    expect(&["cannot read", "own.key"]);
    place(dir.path(), &theirs, &good);
    expect(&["own.crt", "ca.crt", "node n1", "was not signed by this cluster's authority"]);
    fs::write(&files.ca, &good.certificate_pem).unwrap();
    expect(&["ca.crt", "not of an authority"]);
    fs::write(&files.ca, "").unwrap();
    expect(&["ca.crt", "no PEM certificate"]);
    fs::write(&files.ca, vec![b'x'; 300 << 10]).unwrap();
    expect(&["ca.crt", "more than"]);
}

#[test]
fn reload_takes_a_good_pair_keeps_the_last_good_one_and_tells_once() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(CLUSTER).unwrap();
    let files = place(dir.path(), &authority, &node(&authority));
    let identity = TlsIdentity::load(files.clone()).unwrap();
    assert_eq!(identity.reload_if_changed().unwrap(), Reload::Unchanged);
    let first = identity.current();

    // Between the two writes of a replacement the pair does not match.
    let next = node(&authority);
    fs::write(&files.certificate, &next.certificate_pem).unwrap();
    assert!(matches!(identity.reload_if_changed(), Err(TlsError::KeyMismatch { .. })));
    assert_eq!(identity.reload_if_changed().unwrap(), Reload::Unchanged);
    assert!(std::sync::Arc::ptr_eq(&first, &identity.current()));

    let mut watch = identity.watch();
    fs::write(&files.key, &next.key_pem).unwrap();
    assert_eq!(identity.reload_if_changed().unwrap(), Reload::Replaced);
    assert!(!std::sync::Arc::ptr_eq(&first, &identity.current()));
    assert!(watch.has_changed().unwrap());
    watch.borrow_and_update();

    // Somebody else's files, however valid, do not make a running node somebody else.
    place(dir.path(), &authority, &authority.issue_node("n2", 2, [""; 0]).unwrap());
    assert!(matches!(identity.reload_if_changed(), Err(TlsError::OtherIdentity { .. })));
    assert!(!watch.has_changed().unwrap());
    fs::remove_file(&files.key).unwrap();
    assert!(matches!(identity.reload_if_changed(), Err(TlsError::Read { .. })));
}

#[test]
fn check_reports_holders_dates_and_who_vouches() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::create(CLUSTER).unwrap(), Authority::create(2).unwrap());
    let write = |name: &str, text: &str| {
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        file
    };
    let ca = write("ca.crt", ours.certificate_pem());
    let good = write("n1.crt", &node(&ours).certificate_pem);
    let foreign = write("foreign.crt", &theirs.issue_client("c", Role::Admin).unwrap().certificate_pem);
    let ours = ours.with_validity(last_year());
    let old = write("old.crt", &node(&ours).certificate_pem);

    let now = UnixTime::now();
    let reports = tls::check([&good, &foreign, &old, &ca]).unwrap();
    let [good_report, foreign_report, old_report, ca_report] = reports.as_slice() else { panic!("{reports:?}") };
    assert_eq!((good_report.kind(), good_report.node(), good_report.name()), ("node", Some(1), Some("n1")));
    assert_eq!(good_report.chain, Some(Ok(())));
    assert!(good_report.usable(now) && !good_report.expired);
    assert_eq!((foreign_report.role(), foreign_report.cluster()), (Some(Role::Admin), Some(2)));
    assert!(matches!(&foreign_report.chain, Some(Err(why)) if why.contains("client c")), "{foreign_report:?}");
    assert!(old_report.expired && old_report.chain == Some(Ok(())) && !old_report.usable(now));
    assert_eq!((ca_report.kind(), &ca_report.chain), ("authority", &None));

    let alone = tls::check([&good]).unwrap();
    assert_eq!(alone[0].chain, None);
    assert!(tls::check([dir.path().join("missing.crt")]).is_err());
}
