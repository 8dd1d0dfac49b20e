//! `buildyard artifacts`

use std::path::{Path, PathBuf};

use buildyard_types::RunId;
use buildyard_types::api::ArtifactView;
use buildyard_types::size::rounded;
use buildyard_types::worker::ArtifactFile;
use clap::{Args, Subcommand};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::Context;
use crate::beneath::{self, Beneath, Root};
use crate::client::Client;
use crate::exit::{CliError, Result};
use crate::output::{self, Table};
use crate::target;

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
Files land in DIR/JOB/ARTIFACT/PATH; where a commit has several runs, in DIR/PIPELINE/JOB/ARTIFACT/PATH.
Links below DIR are not followed.

Examples:
  buildyard artifacts get 42
  buildyard artifacts get 42/pack --name bin --out /tmp/bin")]
pub(crate) struct GetArgs {
    /// A run or job, or a commit, branch or tag of the checkout; the run of HEAD by default
    id: Option<String>,
    /// Only the artifact of this name
    #[arg(long)]
    name: Option<String>,
    /// Folder to write to; made if it is not there [default: artifacts]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
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

/// The artifacts of each run that is meant; of one job alone where that was named.
async fn artifacts_of(client: &Client, id: Option<&str>) -> Result<Vec<(RunId, Vec<ArtifactView>)>> {
    let target = target::resolve(client, id).await?;
    let job = target.job();
    let mut found = Vec::new();
    for run in target.runs() {
        let mut artifacts: Vec<ArtifactView> =
            client.get(&["runs", &run.to_string(), "artifacts"], &[]).await?;
        artifacts.retain(|artifact| job.is_none_or(|job| artifact.job == job));
        found.push((run, artifacts));
    }
    Ok(found)
}

fn all(runs: Vec<(RunId, Vec<ArtifactView>)>) -> Vec<ArtifactView> {
    runs.into_iter().flat_map(|(_, artifacts)| artifacts).collect()
}

async fn list(context: &Context, client: &Client, id: Option<&str>) -> Result {
    let artifacts = all(artifacts_of(client, id).await?);
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
    let mut runs = artifacts_of(client, args.id.as_deref()).await?;
    if let Some(name) = &args.name {
        for (_, artifacts) in &mut runs {
            artifacts.retain(|artifact| artifact.name == *name);
        }
        if runs.iter().all(|(_, artifacts)| artifacts.is_empty()) {
            return Err(CliError::usage(format!("there is no artifact `{name}`"))
                .hint("`buildyard artifacts list` shows what was kept"));
        }
    }
    let (out, root) = match args.out {
        Some(out) => (out, Root::Named),
        None => (PathBuf::from("artifacts"), Root::Usual),
    };
    let folders = folders_of(client, &runs).await?;
    let beneath = Beneath::open(&out, root).map_err(|error| cannot_write(&out, error))?;
    let mut written = 0;
    for ((_, artifacts), folder) in runs.iter().zip(folders) {
        for artifact in artifacts {
            let folder = folder.join(below(&artifact.job_name)?).join(below(&artifact.name)?);
            for file in &artifact.files {
                let path = folder.join(below(&file.path)?);
                fetch(client, artifact, file, &beneath, &path, &out).await?;
                written += 1;
            }
        }
    }
    if context.ui.json() {
        return output::print_json(&all(runs));
    }
    let noun = if written == 1 { "file" } else { "files" };
    context.ui.progress(&format!("{written} {noun} written below {}", out.display()));
    Ok(())
}

/// Where the artifacts of each run go. Several pipelines may have jobs and artifacts of one name.
async fn folders_of(client: &Client, runs: &[(RunId, Vec<ArtifactView>)]) -> Result<Vec<PathBuf>> {
    if let [_] = runs {
        return Ok(vec![PathBuf::new()]);
    }
    let mut names = Vec::new();
    for (run, _) in runs {
        names.push((target::run(client, *run).await?.pipeline, run.to_string()));
    }
    let names: Vec<(&str, &str)> = names.iter().map(|(name, run)| (name.as_str(), run.as_str())).collect();
    beneath::folders(&names).into_iter().map(|folder| below(&folder.to_string_lossy())).collect()
}

/// The coordinator promises paths that stay below; whoever downloads does not have to believe it.
fn below(path: &str) -> Result<PathBuf> {
    beneath::stays_below(path).ok_or_else(|| {
        CliError::farm(format!("the coordinator names a file `{path}`, which leaves the folder"))
            .hint("nothing was written there; tell whoever runs the farm")
    })
}

fn cannot_write(path: &Path, error: std::io::Error) -> CliError {
    let in_the_way = beneath::is_link(&error);
    let failed = CliError::file("write", path, error);
    match in_the_way {
        true => failed
            .hint("a link or a file stands where a folder must be; remove it, or name another with --out"),
        false => failed,
    }
}

/// Writes one file under a temporary name and gives it its own once its hash is right.
async fn fetch(
    client: &Client,
    artifact: &ArtifactView,
    file: &ArtifactFile,
    beneath: &Beneath,
    path: &Path,
    out: &Path,
) -> Result {
    let cannot = |error| cannot_write(&out.join(path), error);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new(""));
    let (partial, output) = beneath.begin(folder, file.executable).map_err(cannot)?;
    download(client, artifact, file, &mut tokio::fs::File::from_std(output)).await?;
    partial.keep(name).map_err(cannot)
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
