//! What the benchmarks share: medians, the line that each figure is printed in, and a client of a running farm.
//!
//! Every figure stands beside a peer or a physical limit that was measured in the same run, as a ratio; nothing
//! here fails because a machine is slow.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use buildyard_types::RunId;
use buildyard_types::api::{LogLine, RunView, TriggerRequest, TriggerResponse, WorkerView};

/// The middle of the values; the lower of the two middle ones where their number is even.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// One line of the report: name, figure, peer, ratio, limit and how often it was measured.
pub fn report(name: &str, ours: f64, peer: (&str, f64), unit: &str, limit: &str, n: usize) {
    let ratio = ours / peer.1;
    println!(
        "{name:<44} {ours:>9.1} {unit:<6} {:<28} {:>9.1} {unit:<6} ratio {ratio:>5.2}  {limit:<10} n {n}",
        peer.0, peer.1
    );
}

/// Milliseconds since 1970, by the clock that container and coordinator on this host read too.
pub fn wall_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs_f64() * 1_000.0
}

/// Time until a command has written its first byte, and until it has ended, in milliseconds.
pub fn time_first_byte(command: &mut Command) -> Result<(f64, f64)> {
    use std::io::Read;
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let mut out = child.stdout.take().context("the pipe was asked for")?;
    out.read_exact(&mut [0])?;
    let first = begun.elapsed();
    std::io::copy(&mut out, &mut std::io::sink())?;
    ensure!(child.wait()?.success(), "{command:?} failed");
    Ok((first.as_secs_f64() * 1e3, begun.elapsed().as_secs_f64() * 1e3))
}

/// A running farm on this host.
pub struct Farm {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Farm {
    /// Finds the farm of `BUILDYARD_DATA_DIR`, as the command line does.
    pub fn find() -> Result<Self> {
        let data = PathBuf::from(std::env::var_os("BUILDYARD_DATA_DIR").context("set BUILDYARD_DATA_DIR")?);
        let read = |name: &str| {
            let path = data.join("coordinator").join(name);
            std::fs::read_to_string(&path)
                .map(|text| text.trim().to_owned())
                .with_context(|| path.display().to_string())
        };
        Ok(Self { http: reqwest::Client::new(), url: read("endpoint")?, token: read("admin.token")? })
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        let text = self.get_text(path).await?;
        serde_json::from_str(&text).with_context(|| format!("GET {path}: {text}"))
    }

    async fn get_text(&self, path: &str) -> Result<String> {
        let request = self.http.get(format!("{}/api/v1/{path}", self.url)).bearer_auth(&self.token);
        Ok(request.send().await?.error_for_status()?.text().await?)
    }

    /// Starts the run of a repository's HEAD; gives it and the wall time at which the farm had accepted it.
    pub async fn trigger(&self, repository: &Path) -> Result<(RunId, f64)> {
        let request =
            TriggerRequest { repository: repository.display().to_string(), revision: None, key: None };
        let call =
            self.http.post(format!("{}/api/v1/runs", self.url)).bearer_auth(&self.token).json(&request);
        let answer = call.send().await?;
        let accepted = wall_ms();
        let text = answer.text().await?;
        let made: TriggerResponse = serde_json::from_str(&text).with_context(|| text.clone())?;
        Ok((made.runs.first().context("a run was made")?.id, accepted))
    }

    /// Waits until a run has ended; a run that did not pass is an error.
    pub async fn passed(&self, run: RunId, every: Duration) -> Result<RunView> {
        loop {
            let view: RunView = self.get(&format!("runs/{run}")).await?;
            match view.verdict {
                None => tokio::time::sleep(every).await,
                Some(buildyard_types::Verdict::Passed) => return Ok(view),
                Some(verdict) => bail!("{run} {verdict}: {}", view.sentence),
            }
        }
    }

    /// What a run's first job printed, as text.
    pub async fn log_text(&self, view: &RunView) -> Result<String> {
        let attempt =
            view.jobs.first().and_then(|job| job.attempts.last()).context("the job had an attempt")?;
        self.get_text(&format!("attempts/{}/log?format=text", attempt.id)).await
    }

    /// Attempts that the farm's workers hold now.
    pub async fn used_slots(&self) -> Result<u32> {
        let workers: Vec<WorkerView> = self.get("workers").await?;
        Ok(workers.iter().map(|worker| worker.used.slots).sum())
    }

    /// When the first byte of a run's first job was seen, in milliseconds since 1970.
    pub async fn first_byte(&self, view: &RunView) -> Result<f64> {
        let attempt =
            view.jobs.first().and_then(|job| job.attempts.last()).context("the job had an attempt")?;
        let text = self.get_text(&format!("attempts/{}/log?format=jsonl", attempt.id)).await?;
        for line in text.lines() {
            let record: LogLine = serde_json::from_str(line).with_context(|| line.to_owned())?;
            if record.kind == "stdout" {
                return Ok(record.at.0 as f64);
            }
        }
        bail!("{} printed nothing", attempt.id)
    }
}

/// A git repository in a folder of its own with this pipeline file, committed.
pub fn repository(folder: &Path, pipeline: &str) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("pipeline.toml"), pipeline)?;
    git(folder, &["init", "--quiet", "--initial-branch=main"])?;
    commit(folder, "A repository for measuring.")
}

/// One more commit, as somebody who pushes makes it: coordinator and worker have to fetch it.
pub fn commit(folder: &Path, words: &str) -> Result<()> {
    std::fs::write(folder.join("README"), format!("{words}\n"))?;
    git(folder, &["add", "--all"])?;
    let who = ["-c", "user.name=bench", "-c", "user.email=bench@example.invalid"];
    git(folder, &[&who[..], &["commit", "--quiet", "--message=bench"]].concat())
}

fn git(folder: &Path, arguments: &[&str]) -> Result<()> {
    let status = Command::new("git").arg("-C").arg(folder).args(arguments).status()?;
    ensure!(status.success(), "git {arguments:?}");
    Ok(())
}
