//! A long log: from the job to the coordinator's disk, against a bare attach of the same command to a file.
//!
//! Also says what the worker's memory rose to, and whether 2,000,000 numbered lines arrived whole and in order.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use buildyard_test_bench::{Farm, median, report, repository};

const BYTES: u64 = 500_000_000;
const LINES: u64 = 2_000_000;
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> Result<()> {
    let image = std::env::var("BUILDYARD_BENCH_IMAGE").context("set BUILDYARD_BENCH_IMAGE")?;
    let folder = tempfile::tempdir()?;
    let farm = Farm::find()?;
    throughput(&farm, folder.path(), &image).await?;
    order(&farm, folder.path(), &image).await?;
    println!("worker's peak memory {:>33.1} MiB   limit 64", worker_peak_mib()?);
    Ok(())
}

async fn throughput(farm: &Farm, folder: &Path, image: &str) -> Result<()> {
    let print = format!("yes \"$(printf '%099d' 7)\" | head -c {BYTES}");
    let checkout = folder.join("flood");
    repository(&checkout, &pipeline(image, &print))?;
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let target = std::fs::File::create(folder.join("attached"))?;
        let begun = Instant::now();
        let mut attach = Command::new("docker");
        attach.args(["run", "--rm", "--network", "none", "--log-driver", "none", image, "sh", "-c", &print]);
        ensure!(attach.stdout(target.try_clone()?).status()?.success(), "docker run");
        target.sync_all()?;
        ensure!(target.metadata()?.len() == BYTES, "the attach brought every byte");
        peer.push(begun.elapsed().as_secs_f64() * 1e3);

        let begun = Instant::now();
        let (run, _) = farm.trigger(&checkout).await?;
        let view = farm.passed(run, Duration::from_millis(20)).await?;
        ours.push(begun.elapsed().as_secs_f64() * 1e3);
        let kept =
            view.jobs.first().and_then(|job| job.attempts.last()).map_or(0, |attempt| attempt.log_length);
        ensure!(kept >= BYTES, "the farm kept {kept} bytes");
    }
    report(
        "500 MB log, trigger -> kept and closed",
        median(&ours),
        ("docker run > file", median(&peer)),
        "ms",
        "<= 1.0",
        ROUNDS,
    );
    Ok(())
}

async fn order(farm: &Farm, folder: &Path, image: &str) -> Result<()> {
    let checkout = folder.join("lines");
    repository(&checkout, &pipeline(image, &format!("seq 1 {LINES}")))?;
    let (run, _) = farm.trigger(&checkout).await?;
    let view = farm.passed(run, Duration::from_millis(50)).await?;
    let text = farm.log_text(&view).await?;
    let wrong = text.lines().zip(1..=LINES).filter(|(line, number)| line.parse() != Ok(*number)).count();
    let lines = text.lines().count();
    println!("numbered lines: {LINES} printed, {lines} arrived, {wrong} out of order");
    Ok(())
}

fn pipeline(image: &str, run: &str) -> String {
    format!("name = \"log\"\n[jobs.log]\nimage = \"{image}\"\nnetwork = \"none\"\nrun = '''\n{run}\n'''\n")
}

/// The highest resident size of the farm's worker process, found by its command line and data folder.
fn worker_peak_mib() -> Result<f64> {
    let data = std::env::var("BUILDYARD_DATA_DIR").context("set BUILDYARD_DATA_DIR")?;
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        let command = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        if command.contains("serve\0worker") && command.contains(&data) {
            let status = std::fs::read_to_string(folder.join("status"))?;
            let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
            let kib: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
            return Ok(kib / 1024.0);
        }
    }
    anyhow::bail!("no worker process of {data}")
}
