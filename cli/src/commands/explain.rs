//! `buildyard explain`

use buildyard_types::Fault;
use buildyard_types::api::Explanation;
use clap::Args;

use crate::Context;
use crate::checkout;
use crate::client::Client;
use crate::exit::Result;
use crate::output::{self, Tone};
use crate::target::{self, Target, Written};
use crate::terminal;

/// Says in one sentence why something is as it is, then the facts, then what to do.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  buildyard explain                 the run of HEAD
  buildyard explain 42/test         why job `test` of run 42 waits or failed
  buildyard explain wkr-0123456789abc")]
pub(crate) struct ExplainArgs {
    /// A run, job, attempt, worker, or a commit, branch or tag of the checkout
    id: Option<String>,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: ExplainArgs) -> Result {
    let client = Client::connect(&context.settings)?;
    let mut answers: Vec<Explanation> = Vec::new();
    for subject in subjects(&client, args.id.as_deref()).await? {
        answers.push(client.get(&["explain", &subject], &[]).await?);
    }
    if context.ui.json() {
        return output::print_one_or_several(&answers);
    }
    for (index, answer) in answers.iter().enumerate() {
        if index > 0 {
            output::print("")?;
        }
        show(context, answer)?;
    }
    Ok(())
}

/// What to ask about. What is no id and nothing of this checkout is left to the coordinator, which knows more
/// kinds of things.
async fn subjects(client: &Client, text: Option<&str>) -> Result<Vec<String>> {
    if let Some(text) = text
        && let Ok(Written::Revision(name)) = text.parse()
        && !matches!(checkout::commit_of(&name), Ok(Some(_)))
    {
        return Ok(vec![name]);
    }
    Ok(match target::resolve(client, text).await? {
        Target::Runs(runs) => runs.iter().map(ToString::to_string).collect(),
        Target::Job(job) => vec![job.to_string()],
        Target::Attempt(attempt) => vec![attempt.to_string()],
    })
}

fn show(context: &Context, answer: &Explanation) -> Result {
    output::print(&terminal::line(&answer.sentence))?;
    if let Some(fault) = answer.fault {
        let (tone, text) = match fault {
            Fault::Nobody => (Tone::Dim, "fault: nobody's"),
            Fault::Job => (Tone::Bad, "fault: the job's"),
            Fault::Farm => (Tone::Warn, "fault: the farm's; the commit is not to blame"),
        };
        output::print(&context.ui.paint(tone, text))?;
    }
    for detail in &answer.details {
        // The end of a log is a detail of several lines.
        for (index, line) in detail.lines().enumerate() {
            let mark = if index == 0 { '-' } else { ' ' };
            output::print(&format!("  {mark} {}", terminal::line(line)))?;
        }
    }
    for next in &answer.next {
        output::print(&format!("next: {}", terminal::line(next)))?;
    }
    Ok(())
}
