//! Costs of processes, as the kernel counts them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// Returns the CPU time of all threads of these processes.
///
/// # Errors
/// One of them does not run.
pub(crate) fn cpu(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|pid| cpu_of(*pid)).sum()
}

/// Waits until processes have finished the work that loading left them, such as merging tables:
/// until they use less than a tenth of a core for a second.
///
/// # Errors
/// They are not at rest after five minutes, or one ended.
pub(crate) async fn settled(pids: &[u32]) -> anyhow::Result<()> {
    const SECOND: Duration = Duration::from_secs(1);
    let mut before = cpu(pids)?;
    for _ in 0..300 {
        tokio::time::sleep(SECOND).await;
        let now = cpu(pids)?;
        if now.saturating_sub(before) < SECOND / 10 {
            return Ok(());
        }
        before = now;
    }
    anyhow::bail!("the servers are not at rest five minutes after loading")
}

fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let stat = read(pid, "stat")?;
    // The name, in parentheses, may hold anything; user and system time are the 12th and 13th field
    // behind it.
    let (_, fields) = stat.rsplit_once(") ").context("a line of /proc/PID/stat has a name")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<u64, _>>()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// Returns the bytes that the device below a directory has been given to write, by all processes;
/// `None` if there is no device. The kernel's count for a single process is not usable: it counts a
/// small write into a large folio as the whole folio.
pub(crate) fn device_written_bytes(directory: &Path) -> Option<u64> {
    const SECTOR_BYTES: u64 = 512;
    let device = fs::metadata(directory).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let sectors: u64 = stat.split_ascii_whitespace().nth(6)?.parse().ok()?;
    Some(sectors * SECTOR_BYTES)
}

/// Forgets the peaks of resident memory so far.
pub(crate) fn forget_peaks(pids: &[u32]) -> anyhow::Result<()> {
    for pid in pids {
        let path = format!("/proc/{pid}/clear_refs");
        fs::write(&path, "5").with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

/// Returns the peaks of resident memory since they were forgotten, summed.
pub(crate) fn peak_bytes(pids: &[u32]) -> anyhow::Result<u64> {
    let peak = |pid: &u32| Ok(field(&read(*pid, "status")?, "VmHWM:")? << 10);
    pids.iter().map(peak).sum()
}

/// Returns the CPU time of this process.
pub(crate) fn own_cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or(0))
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}: has a server ended?"))
}

/// Returns the number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    let rest = rest.with_context(|| format!("the kernel does not tell {name}"))?;
    Ok(rest.trim_start().split(' ').next().unwrap_or_default().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_in_the_time_of_this_process() {
        let pid = std::process::id();
        let (before, own) = (cpu(&[pid]).unwrap(), own_cpu());
        while own_cpu() - own < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let spent = cpu(&[pid]).unwrap() - before;
        assert!(spent >= Duration::from_millis(30), "{spent:?}");
        assert!(peak_bytes(&[pid]).unwrap() > 100 << 10);
    }

    #[test]
    fn a_process_that_does_not_run_is_told() {
        let error = cpu(&[u32::MAX]).unwrap_err();
        assert!(error.to_string().contains("has a server ended?"), "{error}");
    }
}
