//! `buildyard artifacts`

use std::path::{Component, Path, PathBuf};

use buildyard_types::api::ArtifactView;
use buildyard_types::size::rounded;
use buildyard_types::worker::ArtifactFile;
use clap::{Args, Subcommand};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::Context;
use crate::client::Client;
use crate::exit::{CliError, Result};
use crate::output::{self, Table};
use crate::target::{self, Target};

/// Lists and downloads what jobs kept.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ArtifactsArgs {
    #[command(subcommand)]
    command: Option<ArtifactsCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum ArtifactsCommand {
    /// List the artifacts of a run (the default)
    List(ListArgs),
    /// Download artifacts; every file is checked against its hash
    Get(GetArgs),
}

/// Of what.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// A run or job, or a commit, branch or tag of the checkout; the run of HEAD by default
    id: Option<String>,
}

/// What, and whereto.
#[derive(Debug, Args)]
#[command(after_help = "\
Files land in DIR/JOB/ARTIFACT/PATH.

Examples:
  buildyard artifacts get 42
  buildyard artifacts get 42/pack --name bin --out /tmp/bin")]
pub(crate) struct GetArgs {
    /// A run or job, or a commit, branch or tag of the checkout; the run of HEAD by default
    id: Option<String>,
    /// Only the artifact of this name
    #[arg(long)]
    name: Option<String>,
    /// Folder to write to; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "artifacts")]
    out: PathBuf,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: ArtifactsArgs) -> Result {
    let client = Client::connect(&context.settings)?;
    match args.command {
        None => list(context, &client, args.list.id.as_deref()).await,
        Some(ArtifactsCommand::List(args)) => list(context, &client, args.id.as_deref()).await,
        Some(ArtifactsCommand::Get(args)) => get(context, &client, args).await,
    }
}

async fn artifacts_of(client: &Client, id: Option<&str>) -> Result<Vec<ArtifactView>> {
    let (runs, job) = match target::resolve(client, id).await? {
        Target::Runs(runs) => (runs, None),
        Target::Job(job) => (vec![job.run], Some(job)),
        Target::Attempt(attempt) => (vec![attempt.run()], Some(attempt.job)),
    };
    let mut found: Vec<ArtifactView> = Vec::new();
    for run in runs {
        let artifacts: Vec<ArtifactView> = client.get(&["runs", &run.to_string(), "artifacts"], &[]).await?;
        found.extend(artifacts.into_iter().filter(|artifact| job.is_none_or(|job| artifact.job == job)));
    }
    Ok(found)
}

async fn list(context: &Context, client: &Client, id: Option<&str>) -> Result {
    let artifacts = artifacts_of(client, id).await?;
    if context.ui.json() {
        return output::print_json(&artifacts);
    }
    if artifacts.is_empty() {
        return output::print("no artifacts were kept");
    }
    let mut table = Table::new(&["JOB", "ARTIFACT", "FILES", "SIZE", "KEPT UNTIL"]);
    for artifact in &artifacts {
        table.row([
            artifact.job_name.clone(),
            artifact.name.clone(),
            artifact.files.len().to_string(),
            rounded(artifact.size),
            output::utc(artifact.expires_at),
        ]);
    }
    output::print(&table.render())
}

async fn get(context: &Context, client: &Client, args: GetArgs) -> Result {
    let mut artifacts = artifacts_of(client, args.id.as_deref()).await?;
    if let Some(name) = &args.name {
        artifacts.retain(|artifact| artifact.name == *name);
        if artifacts.is_empty() {
            return Err(CliError::usage(format!("there is no artifact `{name}`"))
                .hint("`buildyard artifacts list` shows what was kept"));
        }
    }
    let mut written = 0;
    for artifact in &artifacts {
        let folder = args.out.join(below(&artifact.job_name)?).join(below(&artifact.name)?);
        for file in &artifact.files {
            fetch(client, artifact, file, &folder.join(below(&file.path)?)).await?;
            written += 1;
        }
    }
    if context.ui.json() {
        return output::print_json(&artifacts);
    }
    let noun = if written == 1 { "file" } else { "files" };
    context.ui.progress(&format!("{written} {noun} written below {}", args.out.display()));
    Ok(())
}

/// A path that stays below the folder it is joined to. The coordinator promises such paths; whoever downloads
/// does not have to believe it.
fn below(path: &str) -> Result<PathBuf> {
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || path.contains('\0') || !inside {
        return Err(CliError::farm(format!(
            "the coordinator names a file `{path}`, which leaves the folder"
        ))
        .hint("nothing was written there; tell whoever runs the farm"));
    }
    Ok(path.into())
}

/// Writes one file under a temporary name and gives it its own once its hash is right.
async fn fetch(client: &Client, artifact: &ArtifactView, file: &ArtifactFile, target: &Path) -> Result {
    let folder = target.parent().unwrap_or(Path::new("."));
    let cannot = |attempt: &'static str, error| CliError::file(attempt, target, error);
    tokio::fs::create_dir_all(folder).await.map_err(|error| CliError::file("make", folder, error))?;
    let partial = folder.join(format!(".buildyard-{:016x}.part", rand::random::<u64>()));
    let mut options = tokio::fs::OpenOptions::new();
    let mode = if file.executable { 0o755 } else { 0o644 };
    let output = options.write(true).create_new(true).mode(mode).open(&partial).await;
    let mut output = output.map_err(|error| cannot("write", error))?;
    let result = download(client, artifact, file, &mut output).await;
    drop(output);
    if result.is_err() {
        // The error that is on its way out says more than a failed clean-up would.
        let _ = tokio::fs::remove_file(&partial).await;
        return result;
    }
    tokio::fs::rename(&partial, target).await.map_err(|error| cannot("write", error))
}

async fn download(
    client: &Client,
    artifact: &ArtifactView,
    file: &ArtifactFile,
    output: &mut tokio::fs::File,
) -> Result {
    let job = artifact.job.to_string();
    let path: Vec<&str> =
        ["jobs", &job, "artifacts", &artifact.name].into_iter().chain(file.path.split('/')).collect();
    let mut response = client.open(&path, &[]).await?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    while let Some(chunk) = client.chunk(&mut response).await? {
        length += chunk.len() as u64;
        if length > file.size {
            break;
        }
        hash.update(&chunk);
        output
            .write_all(&chunk)
            .await
            .map_err(|error| CliError::farm("cannot write a file").because(error))?;
    }
    output.flush().await.map_err(|error| CliError::farm("cannot write a file").because(error))?;
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if length != file.size || found != file.sha256 {
        return Err(CliError::farm(format!(
            "{} arrived damaged: its hash is not {}",
            file.path, file.sha256
        ))
        .hint("ask again; if it stays so, the coordinator's disk is damaged"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leaves_the_folder() {
        for path in ["out/deep/file", "a..b", "..."] {
            assert_eq!(below(path).unwrap(), Path::new(path));
        }
        for path in ["", "/etc/shadow", "../x", "a/../../x", "./a", "a\0b"] {
            assert!(below(path).is_err(), "{path}");
        }
    }
}
