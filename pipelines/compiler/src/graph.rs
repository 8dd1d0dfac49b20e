//! The graph of needs: unknown names, cycles, order.

use std::collections::{BTreeMap, VecDeque};

use buildyard_types::JobSpec;

use crate::job::ReadJob;
use crate::problem::{Code, Span, quote, shorten};
use crate::reader::Reader;

/// Jobs of a cycle that its message names; the others are counted.
const SHOWN_OF_A_CYCLE: usize = 20;
/// Up to so many jobs are listed when a need names none of them.
const SHOWN_OF_ALL: usize = 8;

/// The indexes of the jobs in an order in which each comes after all that it needs, and otherwise in file order.
/// `None` if there is none: a need names no job, or jobs need each other in a circle. Compiled pipelines have one.
pub fn order(jobs: &[JobSpec]) -> Option<Vec<usize>> {
    let by_name: BTreeMap<&str, usize> =
        jobs.iter().enumerate().map(|(index, job)| (job.name.as_str(), index)).collect();
    let mut open: Vec<usize> = jobs.iter().map(|job| job.needs.len()).collect();
    let mut needed_by: Vec<Vec<usize>> = vec![Vec::new(); jobs.len()];
    for (index, job) in jobs.iter().enumerate() {
        for need in &job.needs {
            needed_by[*by_name.get(need.as_str())?].push(index);
        }
    }
    let mut ready: std::collections::BTreeSet<usize> =
        (0..jobs.len()).filter(|index| open[*index] == 0).collect();
    let mut order = Vec::with_capacity(jobs.len());
    while let Some(next) = ready.pop_first() {
        order.push(next);
        for later in &needed_by[next] {
            open[*later] -= 1;
            if open[*later] == 0 {
                ready.insert(*later);
            }
        }
    }
    (order.len() == jobs.len()).then_some(order)
}

/// Records needs that name no job, and jobs that wait for themselves.
pub(crate) fn check(reader: &mut Reader<'_>, jobs: &[ReadJob]) {
    let by_name: BTreeMap<&str, usize> =
        jobs.iter().enumerate().map(|(index, job)| (job.spec.name.as_str(), index)).collect();
    let mut edges: Vec<Vec<(usize, Span)>> = vec![Vec::new(); jobs.len()];
    for (index, job) in jobs.iter().enumerate() {
        for (need, at) in job.spec.needs.iter().zip(&job.needs_at) {
            match by_name.get(need.as_str()) {
                Some(other) => edges[index].push((*other, *at)),
                None if reader.is_whole => unknown_job(reader, need, *at, job, jobs),
                None => {}
            }
        }
    }
    for group in groups(&edges) {
        report_cycle(reader, &group, &edges, jobs);
    }
}

fn unknown_job(reader: &mut Reader<'_>, need: &str, at: Span, job: &ReadJob, jobs: &[ReadJob]) {
    reader.report(at, Code::UnknownJob, |reader| {
        let others = jobs.iter().map(|other| other.spec.name.as_str()).filter(|name| *name != job.spec.name);
        let near = reader.suggester.nearest(need, others.clone());
        let help = match near {
            Some(name) => Some(format!("did you mean `\"{}\"`?", shorten(name))),
            None if (1..=SHOWN_OF_ALL).contains(&others.clone().count()) => {
                let names: Vec<String> = others.map(quote).collect();
                Some(format!("the other jobs are {}", names.join(", ")))
            }
            None => None,
        };
        (format!("there is no job {}", quote(need)), help)
    });
}

/// Groups of jobs of which each waits, over others, for each: the strongly connected parts with a cycle in them,
/// in file order. By Kosaraju's two walks, with a stack of our own, since a file may chain a thousand jobs.
fn groups(edges: &[Vec<(usize, Span)>]) -> Vec<Vec<usize>> {
    let forward: Vec<Vec<usize>> =
        edges.iter().map(|list| list.iter().map(|(other, _)| *other).collect()).collect();
    let mut backward: Vec<Vec<usize>> = vec![Vec::new(); edges.len()];
    for (index, list) in forward.iter().enumerate() {
        for other in list {
            backward[*other].push(index);
        }
    }
    let mut seen = vec![false; edges.len()];
    let mut finished = Vec::new();
    for start in 0..edges.len() {
        walk(start, &forward, &mut seen, &mut finished);
    }
    let mut seen = vec![false; edges.len()];
    let mut groups = Vec::new();
    for start in finished.into_iter().rev() {
        let mut group = Vec::new();
        walk(start, &backward, &mut seen, &mut group);
        group.sort_unstable();
        let is_cycle = group.len() > 1 || group.first().is_some_and(|only| forward[*only].contains(only));
        if is_cycle {
            groups.push(group);
        }
    }
    groups.sort();
    groups
}

/// Walks depth first over what was not seen, and notes each job once all behind it are noted.
fn walk(start: usize, edges: &[Vec<usize>], seen: &mut [bool], finished: &mut Vec<usize>) {
    if seen[start] {
        return;
    }
    seen[start] = true;
    let mut stack = vec![(start, 0)];
    while let Some((job, next)) = stack.pop() {
        match edges[job].get(next) {
            None => finished.push(job),
            Some(other) => {
                stack.push((job, next + 1));
                if !seen[*other] {
                    seen[*other] = true;
                    stack.push((*other, 0));
                }
            }
        }
    }
}

fn report_cycle(reader: &mut Reader<'_>, group: &[usize], edges: &[Vec<(usize, Span)>], jobs: &[ReadJob]) {
    let start = group[0];
    let path = shortest_cycle(start, group, edges);
    let next = path.get(1).copied().unwrap_or(start);
    let at = edges[start].iter().find(|(other, _)| *other == next).map_or(jobs[start].at, |(_, at)| *at);
    reader.report(at, Code::NeedsCycle, |_| {
        let mut names: Vec<String> =
            path.iter().take(SHOWN_OF_A_CYCLE).map(|job| shorten(&jobs[*job].spec.name)).collect();
        if path.len() > SHOWN_OF_A_CYCLE {
            names.push(format!("… {} more …", path.len() - SHOWN_OF_A_CYCLE));
        }
        names.push(shorten(&jobs[start].spec.name));
        let message = format!("these jobs wait for each other: {}", names.join(" -> "));
        (message, Some("an arrow reads \"needs\"; take one of them out".to_owned()))
    });
}

/// The shortest way along needs from a job of a group back to itself.
fn shortest_cycle(start: usize, group: &[usize], edges: &[Vec<(usize, Span)>]) -> Vec<usize> {
    let mut came_from: BTreeMap<usize, usize> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(job) = queue.pop_front() {
        for (other, _) in &edges[job] {
            if *other == start {
                let mut path = vec![job];
                while let Some(before) =
                    path.last().filter(|last| **last != start).and_then(|last| came_from.get(last))
                {
                    path.push(*before);
                }
                path.reverse();
                return path;
            }
            if group.binary_search(other).is_ok() && !came_from.contains_key(other) {
                came_from.insert(*other, job);
                queue.push_back(*other);
            }
        }
    }
    vec![start]
}
