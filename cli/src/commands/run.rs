//! `buildyard run`: jobs of the checkout, here and without the farm.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use buildyard_types::job::{Diagnostic, Pipeline};
use buildyard_types::worker::Capacity;
use buildyard_types::{Labels, Outcome, Verdict};
use buildyard_worker::artifacts::ArtifactLimits;
use buildyard_worker::engine::Engine;
use buildyard_worker::engine::docker::DockerEngine;
use buildyard_worker::host;
use buildyard_worker::local::{Checkout, LocalConfig, LocalError, LocalRunner};
use clap::Args;
use serde::Serialize;
use tokio::sync::watch;

use super::{serve, summary};
use crate::Context;
use crate::beneath::{self, Beneath, Root};
use crate::exit::{self, CliError, Kind, Result};
use crate::local::drive::Driver;
use crate::local::farm::LocalFarm;
use crate::output;
use crate::pipelines::{self, Compiled};
use crate::terminal;

/// Runs jobs of this checkout here.
#[derive(Debug, Args)]
#[command(after_help = "\
Each job gets a throwaway container and a copy of the tracked and unignored files as they are now, by
the worker's own executor: steps, limits and verdicts are the farm's. Needs root and Docker, as a
worker does, and no coordinator. What is asked of labels is not kept: this machine is the only one.

Examples:
  buildyard run                     every job, in the order of their needs
  buildyard run test                this job alone
  buildyard run test --with-needs   and what it needs before it

Exit status: 0 passed, 1 failed, 4 refused, 5 not the job's fault, 130 interrupted.")]
pub(crate) struct RunArgs {
    /// The job to run; all of them by default
    job: Option<String>,
    /// Run what the job needs first
    #[arg(long, requires = "job")]
    with_needs: bool,
    /// The pipeline file, where there are several
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Keep artifacts in this folder, as DIR/JOB/ARTIFACT/PATH, or DIR/PIPELINE/JOB/ARTIFACT/PATH where there
    /// are several pipelines; otherwise they are dropped
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// `--output json`
#[derive(Debug, Serialize)]
struct LocalRun {
    pipeline: String,
    file: String,
    verdict: Verdict,
    diagnostics: Vec<Diagnostic>,
    jobs: Vec<LocalJobEnd>,
}

#[derive(Debug, Serialize)]
struct LocalJobEnd {
    name: String,
    outcome: Outcome,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: RunArgs) -> Result {
    let found = tokio::task::spawn_blocking(|| Checkout::find(Path::new("."))).await;
    let found = found.map_err(|error| CliError::farm("cannot look at the checkout").because(error))?;
    let checkout = found.map_err(|error| {
        CliError::usage("there is no checkout to run")
            .because(error)
            .hint("run the command in a git checkout")
    })?;
    let pipelines = select(compile(&checkout, args.file.as_deref())?, &args)?;
    let (interrupt, interrupted) = watch::channel(false);
    let work = run_all(context, checkout, pipelines, args.out, interrupted);
    let interrupts = async {
        let stop = serve::stop_signal()?;
        stop.await;
        context.ui.progress("stopping; interrupt again to leave at once");
        interrupt.send_replace(true);
        serve::stop_signal()?.await;
        Err(CliError::silent(Kind::Interrupted))
    };
    tokio::select! {
        result = work => result,
        result = interrupts => result,
    }
}

/// The pipeline files of the checkout, or the one that was named.
fn compile(checkout: &Checkout, file: Option<&Path>) -> Result<Vec<Compiled>> {
    match file {
        Some(path) => Ok(vec![pipelines::compile_file(path, path.display().to_string())?]),
        None => pipelines::compile_checkout(checkout.root()),
    }
}

/// Leaves the jobs that were asked for.
fn select(compiled: Vec<Compiled>, args: &RunArgs) -> Result<Vec<Compiled>> {
    let Some(name) = &args.job else { return Ok(compiled) };
    let pipelines = || compiled.iter().filter_map(|one| one.result.as_ref().ok());
    let mut found = pipelines().filter(|pipeline| pipeline.jobs.iter().any(|job| job.name == *name));
    match (found.next(), found.next()) {
        (Some(pipeline), None) => {
            let chosen = alone(pipeline.clone(), name, args.with_needs);
            Ok(vec![Compiled { file: chosen.file.clone(), result: Ok(chosen) }])
        }
        (Some(_), Some(_)) => Err(CliError::usage(format!("several pipelines have a job `{name}`"))
            .hint("say which with --file FILE")),
        // The job may stand in a file that could not be read.
        (None, _) if compiled.iter().any(|one| one.result.is_err()) => {
            Ok(compiled.into_iter().filter(|one| one.result.is_err()).collect())
        }
        (None, _) => {
            let names: Vec<&str> =
                pipelines().flat_map(|pipeline| &pipeline.jobs).map(|job| job.name.as_str()).collect();
            Err(CliError::usage(format!("there is no job `{name}`"))
                .hint(format!("there are {}", names.join(", "))))
        }
    }
}

/// A pipeline of one job, and of what it needs if that is wanted.
fn alone(mut pipeline: Pipeline, name: &str, with_needs: bool) -> Pipeline {
    let mut wanted = BTreeSet::from([name.to_owned()]);
    let mut todo = vec![name.to_owned()];
    while let Some(next) = todo.pop().filter(|_| with_needs) {
        let needs = pipeline.jobs.iter().filter(|job| job.name == next).flat_map(|job| &job.needs);
        todo.extend(needs.filter(|need| wanted.insert((*need).clone())).cloned());
    }
    pipeline.jobs.retain(|job| wanted.contains(&job.name));
    for job in &mut pipeline.jobs {
        job.needs.retain(|need| wanted.contains(need));
    }
    pipeline
}

/// Runs each pipeline, and refuses a file with mistakes as the farm does: the others run all the same.
async fn run_all(
    context: &Context,
    checkout: Checkout,
    pipelines: Vec<Compiled>,
    out: Option<PathBuf>,
    interrupted: watch::Receiver<bool>,
) -> Result {
    let ends = if pipelines.iter().any(|one| one.result.is_ok()) {
        carry_out(context, checkout, pipelines, out, interrupted.clone()).await?
    } else {
        // Telling what is wrong needs neither root nor an engine.
        pipelines.into_iter().filter_map(refused).collect()
    };
    let verdict = Verdict::worst(ends.iter().map(|end| end.verdict));
    let answer = match *interrupted.borrow() {
        true => Err(CliError::silent(Kind::Interrupted)),
        false => exit::by_verdict(verdict),
    };
    exit::answer(tell(context, &ends), answer)
}

/// The end of a run whose file has mistakes.
fn refused(compiled: Compiled) -> Option<LocalRun> {
    let Compiled { file, result } = compiled;
    let diagnostics = result.err()?;
    // As on the farm, a run is called by its file until that could be read.
    Some(LocalRun { pipeline: file.clone(), file, verdict: Verdict::Refused, diagnostics, jobs: Vec::new() })
}

async fn carry_out(
    context: &Context,
    checkout: Checkout,
    pipelines: Vec<Compiled>,
    out: Option<PathBuf>,
    interrupted: watch::Receiver<bool>,
) -> Result<Vec<LocalRun>> {
    let settings = serve::worker_settings(None)?.1;
    let folder = context.settings.data_dir.value.join("local");
    let socket = serve::engine_socket(&settings);
    let limits = ArtifactLimits::default();
    let config = LocalConfig {
        folder: folder.clone(),
        engine_socket: Some(socket.clone()),
        policy: settings.policy,
        artifacts: ArtifactLimits {
            files: settings.artifact_files.unwrap_or(limits.files),
            bytes: settings.artifact_size.unwrap_or(limits.bytes),
        },
    };
    let out = out.map(|path| make_dir(&path)).transpose()?;
    let runner = Arc::new(LocalRunner::open(&config).await.map_err(cannot_run)?);
    let engine = DockerEngine::new(&socket);
    let info = engine.info().await.map_err(|error| CliError::farm("cannot ask the engine").because(error))?;
    let capacity = host::capacity(&info, &folder, &settings.capacity)
        .map_err(|error| CliError::farm("cannot look at this machine").because(error))?;
    let offered = Labels { facts: host::facts(&info), pools: BTreeSet::new() };
    let driver = Driver::new(runner.clone(), Arc::new(checkout), context.ui, interrupted.clone());
    let out = out.map(|out| folders_of(&out, &pipelines)).transpose()?;
    let mut ends = Vec::new();
    for (index, compiled) in pipelines.into_iter().enumerate() {
        match compiled.result {
            Err(_) => ends.extend(refused(compiled)),
            Ok(pipeline) => {
                warn_of_labels(context, &pipeline, &offered);
                let out = out.as_ref().map(|folders| folders[index].as_path());
                ends.push(run_one(&driver, pipeline, capacity, out).await?);
            }
        }
        if *interrupted.borrow() {
            break;
        }
    }
    drop(driver);
    if let Some(runner) = Arc::into_inner(runner) {
        runner.close().await;
    }
    Ok(ends)
}

fn make_dir(path: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(path).map_err(|error| CliError::file("make", path, error))?;
    path.canonicalize().map_err(|error| CliError::file("find", path, error))
}

/// The folder of each pipeline's artifacts, made. What is in `out` may come from the repository.
fn folders_of(out: &Path, pipelines: &[Compiled]) -> Result<Vec<PathBuf>> {
    let name =
        |one: &Compiled| one.result.as_ref().map_or(one.file.clone(), |pipeline| pipeline.name.clone());
    let names: Vec<(String, &str)> = pipelines.iter().map(|one| (name(one), one.file.as_str())).collect();
    let names: Vec<(&str, &str)> = names.iter().map(|(name, file)| (name.as_str(), *file)).collect();
    let beneath = Beneath::open(out, Root::Named).map_err(|error| CliError::file("open", out, error))?;
    let make = |(folder, one): (&Path, &Compiled)| {
        let path = out.join(folder);
        if one.result.is_ok() {
            beneath.make(folder).map_err(|error| CliError::file("make", &path, error))?;
        }
        Ok(path)
    };
    beneath::folders(&names).into_iter().zip(pipelines).map(make).collect()
}

fn cannot_run(error: LocalError) -> CliError {
    let kind = match error {
        LocalError::NotRoot => Kind::Refused,
        LocalError::NoEngine(_) | LocalError::Data(_) | LocalError::Setup { .. } => Kind::Farm,
    };
    CliError::new(kind, "no job can run here").because(error).hint("`buildyard doctor` looks at everything")
}

/// Another architecture or a missing device makes other results; silence about it would be a trap.
fn warn_of_labels(context: &Context, pipeline: &Pipeline, offered: &Labels) {
    for job in pipeline.jobs.iter().filter(|job| !offered.satisfy(&job.labels)) {
        context.ui.progress(&format!(
            "job `{}` asks for `{}`, which this machine does not offer; it runs here all the same",
            job.name, job.labels
        ));
    }
}

async fn run_one(
    driver: &Driver,
    pipeline: Pipeline,
    capacity: Capacity,
    out: Option<&Path>,
) -> Result<LocalRun> {
    let (name, file) = (pipeline.name.clone(), pipeline.file.clone());
    let width = pipeline.jobs.iter().map(|job| job.name.chars().count()).max().unwrap_or(0);
    let several = pipeline.jobs.len() > 1;
    let prefix = |job: &str| several.then(|| format!("{job:<width$} | "));
    let mut farm = LocalFarm::begin(pipeline, driver.checkout.source().clone(), capacity, driver.now());
    let end = driver.run(&mut farm, out, prefix).await?;
    let jobs = farm
        .outcomes()
        .map(|(name, outcome)| LocalJobEnd { name: name.to_owned(), outcome: outcome.clone() })
        .collect();
    Ok(LocalRun { pipeline: name, file, verdict: end.verdict, diagnostics: end.diagnostics, jobs })
}

fn tell(context: &Context, ends: &[LocalRun]) -> Result {
    if context.ui.json() {
        return output::print_one_or_several(ends);
    }
    ends.iter().try_for_each(|end| tell_one(context, end))
}

fn tell_one(context: &Context, end: &LocalRun) -> Result {
    for diagnostic in &end.diagnostics {
        output::print(&terminal::block(&diagnostic.to_string()))?;
    }
    output::print("")?;
    for job in end.jobs.iter().filter(|job| summary::is_red(&job.outcome)) {
        let [cause, fault, again] = summary::red_local_job(&job.name, &job.outcome);
        output::print(&context.ui.paint(output::outcome_tone(&job.outcome), &terminal::line(&cause)))?;
        output::print(&terminal::line(&fault))?;
        output::print(&terminal::line(&again))?;
    }
    let each = end.jobs.iter().map(|job| format!("{} {}", job.name, job.outcome.class()));
    let jobs = terminal::line(&each.collect::<Vec<_>>().join(", "));
    let jobs = if jobs.is_empty() { jobs } else { format!(": {jobs}") };
    let verdict = context.ui.paint(output::verdict_tone(end.verdict), end.verdict.as_str());
    output::print(&format!("{}: {verdict}{jobs}", terminal::line(&end.pipeline)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_job_comes_alone_or_with_all_that_it_needs() {
        let text = "[defaults]\nimage = \"a\"\nrun = \"true\"\n";
        let text = text.replace("run = \"true\"\n", "")
            + "[jobs.a]\nrun = \"true\"\n[jobs.b]\nneeds = [\"a\"]\nrun = \"true\"\n\
               [jobs.c]\nneeds = [\"b\"]\nrun = \"true\"\n[jobs.d]\nneeds = [\"a\"]\nrun = \"true\"\n";
        let pipeline = buildyard_pipelines::compile("pipeline.toml", text.as_bytes()).unwrap();
        let names = |with_needs| {
            let chosen = alone(pipeline.clone(), "c", with_needs);
            chosen.jobs.iter().map(|job| (job.name.clone(), job.needs.clone())).collect::<Vec<_>>()
        };
        let job =
            |name: &str, needs: &[&str]| (name.to_owned(), needs.iter().map(ToString::to_string).collect());
        assert_eq!(names(false), [job("c", &[])]);
        assert_eq!(names(true), [job("a", &[]), job("b", &["a"]), job("c", &["b"])]);
    }
}
