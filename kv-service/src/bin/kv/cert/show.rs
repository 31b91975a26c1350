//! `kv cert show`: what certificates say.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use kv_service::batch::text::escaped;
use raft_transport_quic::CertificateInfo;
use serde::Serialize;

use super::DAY;
use crate::exit::Exit;
use crate::output;

#[derive(Serialize)]
struct Shown {
    file: String,
    common_name: String,
    dns_names: Vec<String>,
    is_ca: bool,
    serial: String,
    valid_from: String,
    valid_until: String,
    /// Negative once it has expired.
    days_left: i64,
    sha256: String,
}

/// Ends with code 1 if one of them is not valid now.
pub(super) fn run(dir: &Path, files: &[PathBuf], json: bool) -> anyhow::Result<Exit> {
    let files = if files.is_empty() { pem_files(dir)? } else { files.to_vec() };
    let now = wall_clock();
    let (mut shown, mut all_valid) = (Vec::new(), true);
    for file in &files {
        let pem = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let infos = CertificateInfo::read(&pem).with_context(|| file.display().to_string())?;
        for info in infos {
            all_valid &= (info.valid_from..=info.valid_until).contains(&now);
            shown.push(Shown::of(file, info, now));
        }
    }
    if json {
        output::show(serde_json::to_string_pretty(&shown)?.as_bytes())?;
    } else {
        let head = ["file", "for", "valid until", "days left", "serial"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(shown.iter().map(Shown::row));
        output::show(output::table(&rows).as_bytes())?;
    }
    Ok(if all_valid { Exit::Done } else { Exit::ConditionFailed })
}

fn pem_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| {
        format!("cannot read {}: name files, or the --dir of a CA", dir.display())
    })?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

impl Shown {
    fn of(file: &Path, info: CertificateInfo, now: SystemTime) -> Self {
        let CertificateInfo {
            common_name,
            dns_names,
            is_ca,
            serial,
            valid_from,
            valid_until,
            fingerprint: sha256,
        } = info;
        let days = |left: std::time::Duration| (left.as_secs() / DAY.as_secs()) as i64;
        let days_left = match valid_until.duration_since(now) {
            Ok(left) => days(left),
            Err(error) => -1 - days(error.duration()),
        };
        let time = |time| humantime::format_rfc3339_seconds(time).to_string();
        Self {
            file: file.display().to_string(),
            common_name,
            dns_names,
            is_ca,
            serial,
            valid_from: time(valid_from),
            valid_until: time(valid_until),
            days_left,
            sha256,
        }
    }

    fn row(&self) -> Vec<String> {
        let owner = match &self.dns_names[..] {
            _ if self.is_ca => format!("CA: {}", self.common_name),
            [] => self.common_name.clone(),
            [name] if *name == self.common_name => name.clone(),
            names => format!("{} ({})", names.join(", "), self.common_name),
        };
        let left = match self.days_left {
            left if left < 0 => "expired".to_owned(),
            left => left.to_string(),
        };
        let owner = escaped(owner.as_bytes(), |_| false);
        vec![self.file.clone(), owner, self.valid_until.clone(), left, self.serial.clone()]
    }
}

/// The wall clock, which certificates go by.
#[allow(clippy::disallowed_methods, reason = "no decision of the store rests on it")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}
