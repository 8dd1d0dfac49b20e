//! What no worker of this farm could ever run is refused at submission, with the nearest worker named.
//!
//! Known workers count even when they are cordoned or away: those jobs wait instead. While no worker is known at
//! all, nothing is refused.

use std::collections::BTreeMap;

use buildyard_types::job::{Diagnostic, Pipeline};
use buildyard_types::{JobSpec, LabelExpr};

use crate::demand::Demand;
use crate::lifecycle::worker::Worker;
use crate::state::State;

/// Why a demand cannot be met by any known worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unmet {
    /// Labels: the worker that lacks least, and what it lacks.
    Labels { nearest: String, missing: Vec<String> },
    /// Size: the worker with matching labels that lacks least, and what it lacks.
    Size { nearest: String, lacking: Vec<String> },
}

/// Every reason to refuse a pipeline, in file order.
pub(crate) fn refusals(state: &State, pipeline: &Pipeline) -> Vec<Diagnostic> {
    let mut diagnostics = broken_needs(pipeline);
    let mut known: BTreeMap<Demand, Option<Unmet>> = BTreeMap::new();
    for job in &pipeline.jobs {
        let demand = Demand::of(job);
        let unmet = known.entry(demand).or_insert_with_key(|demand| unmet(state, demand));
        if let Some(unmet) = unmet {
            diagnostics.push(diagnostic(pipeline, job, unmet));
        }
    }
    diagnostics
}

/// Why no known worker could ever take a demand; `None` also while no worker is known.
pub(crate) fn unmet(state: &State, demand: &Demand) -> Option<Unmet> {
    if state.workers.is_empty() {
        return None;
    }
    let matching = || state.workers.values().filter(|worker| worker.satisfies(&demand.labels));
    // The usual case first: it ends at the first worker that will do.
    if matching().any(|worker| demand.share.fits(&worker.offer.capacity)) {
        return None;
    }
    if matching().next().is_none() {
        return nearest_by_labels(state, &demand.labels);
    }
    let lacking = |worker: &Worker| demand.share.lacking(&worker.offer.capacity);
    let nearest = matching().min_by_key(|worker| (lacking(worker).len(), &worker.name))?;
    Some(Unmet::Size { nearest: nearest.name.clone(), lacking: lacking(nearest) })
}

fn nearest_by_labels(state: &State, labels: &LabelExpr) -> Option<Unmet> {
    let missing = |worker: &Worker| -> Vec<String> {
        worker.labels().missing(labels).iter().map(ToString::to_string).collect()
    };
    let nearest = state.workers.values().min_by_key(|worker| (missing(worker).len(), &worker.name))?;
    Some(Unmet::Labels { nearest: nearest.name.clone(), missing: missing(nearest) })
}

fn diagnostic(pipeline: &Pipeline, job: &JobSpec, unmet: &Unmet) -> Diagnostic {
    let name = &job.name;
    match unmet {
        Unmet::Labels { nearest, missing } => whole_file(
            pipeline,
            "no-worker-matches",
            format!("job `{name}` asks for `{}`, and no known worker offers that", job.labels),
            format!("the nearest worker is {nearest}; it lacks {}", missing.join(", ")),
        ),
        Unmet::Size { nearest, lacking } => whole_file(
            pipeline,
            "no-worker-large-enough",
            format!("job `{name}` asks for more than any matching worker has"),
            format!("the nearest worker is {nearest}; it lacks {}", lacking.join(", ")),
        ),
    }
}

/// The compiler lets none of these through. A job whose gate can never open would wait for ever, so that is
/// checked here all the same.
fn broken_needs(pipeline: &Pipeline) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    let mut open_needs: BTreeMap<&str, usize> =
        pipeline.jobs.iter().map(|job| (&*job.name, job.needs.len())).collect();
    let mut dependents: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for job in &pipeline.jobs {
        for need in &job.needs {
            if !open_needs.contains_key(need.as_str()) {
                let message = format!("job `{}` needs `{need}`, and there is no such job", job.name);
                diagnostics.push(whole_file(
                    pipeline,
                    "unknown-need",
                    message,
                    "name a job of this file".into(),
                ));
            }
            dependents.entry(need).or_default().push(&job.name);
        }
    }
    if !diagnostics.is_empty() {
        return diagnostics;
    }
    // Jobs without open needs open the gates of others; what stays is in a cycle, or behind one.
    let mut ready: Vec<&str> =
        open_needs.iter().filter(|(_, open)| **open == 0).map(|(name, _)| *name).collect();
    while let Some(name) = ready.pop() {
        open_needs.remove(name);
        for dependent in dependents.get(name).into_iter().flatten() {
            let Some(open) = open_needs.get_mut(dependent) else { continue };
            *open = open.saturating_sub(1);
            if *open == 0 {
                ready.push(dependent);
            }
        }
    }
    let stuck: Vec<&str> = open_needs.into_keys().collect();
    if !stuck.is_empty() {
        let message = format!("the needs of {} form a cycle", stuck.join(", "));
        diagnostics.push(whole_file(pipeline, "needs-cycle", message, "remove one of these needs".into()));
    }
    diagnostics
}

fn whole_file(pipeline: &Pipeline, code: &str, message: String, help: String) -> Diagnostic {
    Diagnostic {
        file: pipeline.file.clone(),
        line: 0,
        column: 0,
        length: 0,
        source: String::new(),
        code: code.to_owned(),
        message,
        help: Some(help),
    }
}
