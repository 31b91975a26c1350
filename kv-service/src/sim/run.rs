//! Runs a scenario on a clock of its own, and prints how to replay it if it fails.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

/// The longest run of a scenario, in the time of the paused clock: an hour. A scenario that takes
/// longer makes no progress.
const SCENARIO_PATIENCE: Duration = Duration::from_secs(3_600);

/// Runs the scenario once for each seed, each time on a runtime and a paused clock of its own. The
/// environment variable `SEEDS`, such as `0..1000` or `17..18`, takes the place of the range.
///
/// # Panics
/// If a run panics, or does not end within an hour of its clock; the seed is printed. Also if
/// `SEEDS` is not a range.
pub fn for_seeds(seeds: Range<u64>, scenario: impl AsyncFn(u64)) {
    for seed in seeds_to_run(seeds) {
        run(seed, &scenario);
    }
}

/// Runs the scenario once, on a single-threaded runtime and a paused clock of its own, and returns
/// the scenario's result. Tasks that the scenario leaves behind are dropped.
///
/// # Panics
/// If the run panics, or does not end within an hour of its clock; the seed is printed.
pub fn run<T>(seed: u64, scenario: impl AsyncFn(u64) -> T) -> T {
    let _guard = SeedOfPanic(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime with a clock can be built");
    runtime.block_on(async {
        let run = tokio::time::timeout(SCENARIO_PATIENCE, scenario(seed));
        run.await.expect("the scenario ends within an hour of its clock")
    })
}

/// Returns the range in the environment variable `SEEDS`, such as `0..1000`, or `seeds` if it is
/// not set.
///
/// # Panics
/// If the variable is not a range.
pub fn seeds_to_run(seeds: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("SEEDS") else { return seeds };
    let (first, end) = text.split_once("..").expect("SEEDS is a range, such as 0..1000");
    let number = |text: &str| text.parse().expect("SEEDS is a range of numbers");
    number(first)..number(end)
}

struct SeedOfPanic(u64);

impl Drop for SeedOfPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(seed) = *self;
            let command = command_of_this_test().unwrap_or_else(|| "(the same program)".to_owned());
            let next = seed + 1;
            eprintln!("the scenario failed with seed {seed}; to replay it:");
            eprintln!("    SEEDS={seed}..{next} {command}");
        }
    }
}

/// Returns the command that repeats the test on this thread, if Cargo has started the test.
fn command_of_this_test() -> Option<String> {
    let package = std::env::var("CARGO_PKG_NAME").ok()?;
    let folder = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main")?;
    let program = std::env::current_exe().ok()?;
    let stem = program.file_stem()?.to_str()?;
    let target = stem.rsplit_once('-').map_or(stem, |(target, _hash)| target);
    let tests = Path::new(&folder).join("tests");
    let is_test_target =
        tests.join(format!("{target}.rs")).exists() || tests.join(target).join("main.rs").exists();
    let target = if is_test_target { format!(" --test {target}") } else { String::new() };
    Some(format!("cargo test -p {package}{target} -- --exact {test}"))
}
