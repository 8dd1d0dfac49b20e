//! An idle farm's first byte and a burst of short jobs, each against `docker run` in the same run.
//!
//! Needs a running farm (`BUILDYARD_DATA_DIR`) and an image with a shell (`BUILDYARD_BENCH_IMAGE`). `scripts/bench`
//! sees to both.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use buildyard_test_bench::{Farm, commit, median, report, repository, time_first_byte};

/// Jobs of one burst, after the issue that set the target.
const BURST: usize = 100;
/// Rounds of the burst; their median counts.
const BURST_ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> Result<()> {
    let image = std::env::var("BUILDYARD_BENCH_IMAGE").context("set BUILDYARD_BENCH_IMAGE")?;
    let rounds: usize = std::env::var("BUILDYARD_BENCH_ROUNDS").map_or(Ok(30), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    let farm = Farm::find()?;
    for (network, docker_network) in [("none", "none"), ("egress", "bridge")] {
        first_byte(&farm, folder.path(), &image, network, docker_network, rounds).await?;
    }
    burst(&farm, folder.path(), &image).await
}

fn docker_run(image: &str, network: &str, command: &[&str]) -> Command {
    let mut docker = Command::new("docker");
    docker.args(["run", "--rm", "--network", network, image]).args(command);
    docker
}

async fn first_byte(
    farm: &Farm,
    folder: &Path,
    image: &str,
    network: &str,
    docker_network: &str,
    rounds: usize,
) -> Result<()> {
    let checkout = folder.join(format!("echo-{network}"));
    repository(
        &checkout,
        &format!(
            "name = \"echo\"\n[jobs.echo]\nimage = \"{image}\"\nnetwork = \"{network}\"\nrun = \"echo hi\"\n"
        ),
    )?;
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    // The first round of each warms caches that both have: image, mirror, page cache.
    for round in 0..=rounds {
        // As after a push: the commit is new to coordinator and worker.
        commit(&checkout, &format!("Round {round}."))?;
        let (docker, _) = time_first_byte(&mut docker_run(image, docker_network, &["echo", "hi"]))?;
        let (run, accepted) = farm.trigger(&checkout).await?;
        let view = farm.passed(run, Duration::from_millis(20)).await?;
        let first = farm.first_byte(&view).await? - accepted;
        if round > 0 {
            peer.push(docker);
            ours.push(first);
        }
        wait_until_idle(farm).await?;
    }
    let name = format!("accepted -> first byte, network {network}");
    report(&name, median(&ours), ("docker run", median(&peer)), "ms", "<= 1.3", rounds);
    Ok(())
}

/// The end of a run comes before its container is gone; the next round must not pay for the last one's clean-up.
async fn wait_until_idle(farm: &Farm) -> Result<()> {
    for _ in 0..500 {
        if farm.used_slots().await? == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("the worker still holds attempts")
}

async fn burst(farm: &Farm, folder: &Path, image: &str) -> Result<()> {
    let checkout = folder.join("burst");
    let mut pipeline = format!(
        "name = \"burst\"\n[defaults]\nimage = \"{image}\"\nnetwork = \"none\"\n\
         resources = {{ cpus = 0.25, memory = \"64MiB\", disk = \"64MiB\" }}\n"
    );
    for job in 0..BURST {
        pipeline.push_str(&format!("[jobs.j{job}]\nrun = \"true\"\n"));
    }
    repository(&checkout, &pipeline)?;
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..BURST_ROUNDS {
        let begun = Instant::now();
        let script = format!("seq {BURST} | xargs -P4 -I{{}} docker run --rm --network none {image} true");
        ensure!(Command::new("sh").args(["-c", &script]).status()?.success(), "xargs docker run");
        peer.push(begun.elapsed().as_secs_f64() * 1e3);

        let begun = Instant::now();
        let (run, _) = farm.trigger(&checkout).await?;
        let view = farm.passed(run, Duration::from_millis(50)).await?;
        ours.push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!(view.jobs.len() == BURST, "every job of the burst passed");
        wait_until_idle(farm).await?;
    }
    report(
        "burst of 100 `true`, makespan",
        median(&ours),
        ("xargs -P4 docker run", median(&peer)),
        "ms",
        "<= 1.1",
        BURST_ROUNDS,
    );
    Ok(())
}
