//! Every key of a pipeline file: one table, from which the compiler takes what it accepts, expects and suggests,
//! and from which the documentation is printed. So the two cannot part.

/// The kind of table that a key stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The file itself.
    Pipeline,
    /// `[defaults]`
    Defaults,
    /// `[jobs.NAME]`
    Job,
    /// One of `[[jobs.NAME.steps]]`.
    Step,
    /// One of `needs`, when written as a table.
    Need,
    /// `timeout`, when written as a table.
    Timeout,
    /// `resources`
    Resources,
    /// `checkout`
    Checkout,
    /// One of `artifacts`.
    Artifact,
}

impl Scope {
    /// Every scope, outer ones first.
    pub const ALL: [Scope; 9] = [
        Scope::Pipeline,
        Scope::Defaults,
        Scope::Job,
        Scope::Step,
        Scope::Need,
        Scope::Timeout,
        Scope::Resources,
        Scope::Checkout,
        Scope::Artifact,
    ];

    /// How a sentence names a table of this kind: "`x` is no key of a step".
    pub fn noun(self) -> &'static str {
        match self {
            Scope::Pipeline => "the pipeline",
            Scope::Defaults => "`[defaults]`",
            Scope::Job => "a job",
            Scope::Step => "a step",
            Scope::Need => "a `needs` entry",
            Scope::Timeout => "`timeout`",
            Scope::Resources => "`resources`",
            Scope::Checkout => "`checkout`",
            Scope::Artifact => "an artifact",
        }
    }

    /// The heading of its part of the documentation.
    pub fn title(self) -> &'static str {
        match self {
            Scope::Pipeline => "The file",
            Scope::Defaults => "`[defaults]`: for every job that does not say otherwise",
            Scope::Job => "`[jobs.NAME]`: a job",
            Scope::Step => "`[[jobs.NAME.steps]]`: a step",
            Scope::Need => "`needs = [{ … }]`: a need as a table",
            Scope::Timeout => "`timeout = { … }`: limits in time",
            Scope::Resources => "`resources = { … }`: what a job may use",
            Scope::Checkout => "`checkout = { … }`: how the commit comes into the workspace",
            Scope::Artifact => "`artifacts = [{ … }]`: what is kept",
        }
    }

    /// The tables around one of this kind, the nearest first.
    pub(crate) fn around(self) -> &'static [Scope] {
        match self {
            Scope::Pipeline => &[],
            Scope::Defaults | Scope::Job => &[Scope::Pipeline],
            Scope::Step | Scope::Need | Scope::Artifact => &[Scope::Job],
            Scope::Timeout | Scope::Resources | Scope::Checkout => &[Scope::Job, Scope::Defaults],
        }
    }
}

/// Whether this version carries a key out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Now,
    /// It knows the key and refuses it with a diagnostic of its own.
    Later,
}

/// A key.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// Where it stands.
    pub scope: Scope,
    /// Its name.
    pub name: &'static str,
    /// What it takes, as "expected …" says it.
    pub kind: &'static str,
    /// What holds when it is not written.
    pub default: &'static str,
    /// A line that uses it.
    pub example: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// Whether this version carries it out.
    pub status: Status,
}

const fn now(
    scope: Scope,
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    example: &'static str,
    meaning: &'static str,
) -> Key {
    Key { scope, name, kind, default, example, meaning, status: Status::Now }
}

const fn later(scope: Scope, name: &'static str, meaning: &'static str) -> Key {
    Key { scope, name, kind: "", default: "", example: "", meaning, status: Status::Later }
}

const TEXT: &str = "a string";
const TABLE: &str = "a table";
const DURATION: &str = "a duration in quotes";
const LIMITS: &str = "a duration in quotes or a table";
const SIZE: &str = "a size in quotes";
const ENV: &str = "a table of strings";

/// Every key, in the order of the documentation. One line is one key.
#[rustfmt::skip]
pub const KEYS: &[Key] = {
    use Scope::{Artifact, Checkout, Defaults, Job, Need, Pipeline, Resources, Step, Timeout};
    &[
        now(Pipeline, "name", TEXT, "the file's name", r#"name = "cjson""#, "The name that people see."),
        now(Pipeline, "defaults", TABLE, "none", r#"defaults = { image = "debian:12" }"#, "What holds for every job that does not say otherwise."),
        now(Pipeline, "jobs", "a table of jobs", "required", r#"jobs.test = { image = "debian:12", run = "make test" }"#, "The jobs. They start in file order as far as their needs allow."),
        later(Pipeline, "on", "When a run starts. Every pipeline file runs for each commit that is triggered."),
        later(Pipeline, "vars", "Values to use in several places."),
        later(Pipeline, "templates", "Parts that several jobs share."),

        now(Defaults, "image", TEXT, "none", r#"image = "c-toolchain:12""#, "The image of the jobs' containers."),
        now(Defaults, "labels", "a label expression in quotes", "every worker", r#"labels = "os=linux && arch=amd64""#, "What a worker must offer. A job's own expression takes its place."),
        now(Defaults, "timeout", LIMITS, "1h to run, 2h to wait", r#"timeout = { job = "30m", queue = "2h" }"#, "How long jobs may run and wait."),
        now(Defaults, "env", ENV, "none", r#"env = { LC_ALL = "C.UTF-8" }"#, "Variables of every step. Those of a job and of a step win."),
        now(Defaults, "resources", TABLE, "see below", r#"resources = { cpus = 2 }"#, "What a job may use. A job's own keys win one by one."),
        now(Defaults, "network", "`\"none\"`, `\"egress\"` or `\"host\"`", "`egress`", r#"network = "none""#, "The network of the jobs' containers."),
        now(Defaults, "user", "`\"build\"` or `\"root\"`", "`build`", r#"user = "build""#, "As whom steps run."),
        now(Defaults, "checkout", TABLE, "see below", r#"checkout = { depth = 50 }"#, "How the commit comes into the workspace. A job's own keys win one by one."),
        now(Defaults, "shell", "`\"sh\"` or `\"bash\"`", "`sh`", r#"shell = "bash""#, "The shell of the jobs' steps."),

        now(Job, "image", TEXT, "that of `[defaults]`", r#"image = "c-toolchain:12""#, "The image of the job's container, by tag or digest. It needs `/bin/sh`."),
        now(Job, "labels", "a label expression in quotes", "those of `[defaults]`", r#"labels = "arch=arm64 && !slow""#, "What the worker must offer: facts as `key=value`, pools as bare names, joined by `&&`, `||`, `!` and brackets."),
        now(Job, "needs", "an array of job names", "none", r#"needs = ["lint"]"#, "Jobs that must pass before this one starts."),
        now(Job, "env", ENV, "none", r#"env = { CFLAGS = "-O2" }"#, "Variables of the job's steps. A step's own win."),
        now(Job, "run", TEXT, "`run` or `steps`", r#"run = "make lint""#, "The command of a job with one step."),
        now(Job, "steps", "an array of tables", "`run` or `steps`", r#"steps = [{ name = "unit tests", run = "make check" }]"#, "The commands of the job. They run one after the other; the first that fails ends the job."),
        now(Job, "shell", "`\"sh\"` or `\"bash\"`", "that of `[defaults]`", r#"shell = "bash""#, "The shell of the job's steps: `sh -e`, or `bash -eo pipefail`."),
        now(Job, "timeout", LIMITS, "that of `[defaults]`", r#"timeout = "10m""#, "How long the job may run, its steps together; as a table, also how long it may wait."),
        now(Job, "artifacts", "an array of tables", "none", r#"artifacts = [{ name = "bin", paths = ["out/**"] }]"#, "Files to keep when the job passed."),
        now(Job, "resources", TABLE, "those of `[defaults]`", r#"resources = { cpus = 2, memory = "4GiB" }"#, "What the job may use."),
        now(Job, "network", "`\"none\"`, `\"egress\"` or `\"host\"`", "that of `[defaults]`", r#"network = "none""#, "The container's network: none but its own loopback; outwards only; or the worker's own, where its policy allows that."),
        now(Job, "user", "`\"build\"` or `\"root\"`", "that of `[defaults]`", r#"user = "root""#, "As whom the steps run: uid 1000, or uid 0 with few capabilities, where the worker's policy allows that."),
        now(Job, "checkout", TABLE, "that of `[defaults]`", r#"checkout = { depth = "all", tags = true }"#, "How the commit comes into the workspace."),
        later(Job, "extends", "Takes keys from templates."),
        later(Job, "before", "Steps before those of the job."),
        later(Job, "matrix", "Makes several jobs of one."),
        later(Job, "when", "A condition for the job to run."),
        later(Job, "allow_failure", "Lets the run pass although the job fails."),
        later(Job, "services", "Containers beside the job, such as a database."),
        later(Job, "cache", "Files that outlive the job."),
        later(Job, "reports", "Test and analysis results to show."),
        later(Job, "retry", "Further attempts after a failure of the job itself. After a fault of the farm the job is always tried again."),
        later(Job, "secrets", "Secret values."),
        later(Job, "image_build", "Builds an image."),
        later(Job, "environment", "The place that a deployment goes to."),
        later(Job, "approval", "Asks people before the job starts."),
        later(Job, "concurrency", "Keeps jobs of one group apart."),
        later(Job, "paths", "Skips the job when no such file changed."),

        now(Step, "name", TEXT, "`step 1`, `step 2`, …", r#"name = "unit tests""#, "The name that people see. Names of one job differ."),
        now(Step, "run", TEXT, "required", r#"run = "make check""#, "The script. It stops at the first command that fails."),
        now(Step, "shell", "`\"sh\"` or `\"bash\"`", "that of the job", r#"shell = "bash""#, "`sh -e`, or `bash -eo pipefail`. The image must have it."),
        now(Step, "dir", TEXT, "the workspace", r#"dir = "server""#, "The folder, below the workspace, in which the script starts."),
        now(Step, "env", ENV, "none", r#"env = { VERBOSE = "1" }"#, "Variables of this step alone."),
        now(Step, "timeout", DURATION, "that of the job", r#"timeout = "5m""#, "How long the step may run. The job's limit holds all the same."),
        later(Step, "when", "A condition for the step to run."),
        later(Step, "secrets", "Secret values."),

        now(Need, "job", TEXT, "required", r#"job = "lint""#, "The job that must pass."),
        later(Need, "outcome", "Starts the job also after other outcomes."),
        later(Need, "artifacts", "Brings artifacts of the needed job along."),
        later(Need, "into", "The folder for those artifacts."),

        now(Timeout, "job", DURATION, "`1h`", r#"job = "30m""#, "How long the job may run."),
        now(Timeout, "queue", DURATION, "`2h`", r#"queue = "2h""#, "How long it may wait for a worker."),

        now(Resources, "cpus", "a number", "`1`", r#"cpus = 1.5"#, "Processors."),
        now(Resources, "memory", SIZE, "`2GiB`", r#"memory = "4GiB""#, "Memory. There is no swap beyond it."),
        now(Resources, "pids", "a whole number", "`512`", r#"pids = 1024"#, "Processes and threads."),
        now(Resources, "disk", SIZE, "`10GiB`", r#"disk = "20GiB""#, "Workspace, home and what is written elsewhere in the container."),

        now(Checkout, "depth", "a whole number or `\"all\"`", "`1`", r#"depth = 50"#, "How many commits of history come along."),
        now(Checkout, "tags", "`true` or `false`", "`false`", r#"tags = true"#, "Whether tags come along."),
        later(Checkout, "submodules", "Brings submodules along."),
        later(Checkout, "lfs", "Brings large files along."),

        now(Artifact, "name", TEXT, "required", r#"name = "bin""#, "The artifact's name. Names of one job differ."),
        now(Artifact, "paths", "an array of strings", "required", r#"paths = ["out/**", "!out/tmp/**"]"#, "Globs below the workspace. One that begins with `!` takes files out again."),
        now(Artifact, "required", "`true` or `false`", "`false`", r#"required = true"#, "Whether the job fails when no file is found."),
        now(Artifact, "keep", DURATION, "`30d`", r#"keep = "7d""#, "How long the files are kept."),
        later(Artifact, "when", "Keeps files also when the job did not pass."),
    ]
};

/// Words of other systems, and keys that are written in the wrong place, with what to write instead.
const HINTS: &[(Scope, &str, &str)] = {
    use Scope::{Artifact, Defaults, Job, Pipeline, Resources, Step};
    const STEP_KEY: &str = "this is a key of a step: write the command below `[[jobs.NAME.steps]]`";
    &[
        (Pipeline, "stages", "jobs start as soon as their `needs` passed; there are no stages"),
        (Pipeline, "job", "jobs are written `[jobs.NAME]`"),
        (Pipeline, "steps", "steps belong to a job: `[[jobs.NAME.steps]]`"),
        (Pipeline, "run", "a command belongs to a job: `[jobs.NAME]`, then `run`"),
        (Pipeline, "image", "for all jobs, write it below `[defaults]`"),
        (Pipeline, "env", "for all jobs, write it below `[defaults]`"),
        (Pipeline, "labels", "for all jobs, write it below `[defaults]`"),
        (Pipeline, "timeout", "for all jobs, write it below `[defaults]`"),
        (Defaults, "run", "a command belongs to a job: `[jobs.NAME]`, then `run`"),
        (Job, "name", "a job's name stands in its header: `[jobs.NAME]`"),
        (Job, "script", "the command of a job is `run`"),
        (Job, "command", "the command of a job is `run`"),
        (Job, "commands", "the commands of a job are `steps`, each with its `run`"),
        (Job, "depends_on", "the jobs that must pass first are `needs`"),
        (Job, "dependencies", "the jobs that must pass first are `needs`"),
        (Job, "stage", "the jobs that must pass first are `needs`"),
        (Job, "container", "the container's image is `image`"),
        (Job, "runs-on", "what a worker must offer is `labels`"),
        (Job, "runs_on", "what a worker must offer is `labels`"),
        (Job, "tags", "what a worker must offer is `labels`"),
        (Job, "variables", "variables are `env`"),
        (Job, "timeout-minutes", "a time limit is `timeout`, with its unit: `timeout = \"30m\"`"),
        (Job, "memory", "write it into `resources = { … }`"),
        (Job, "cpus", "write it into `resources = { … }`"),
        (Job, "pids", "write it into `resources = { … }`"),
        (Job, "disk", "write it into `resources = { … }`"),
        (Job, "depth", "write it into `checkout = { … }`"),
        (Job, "dir", STEP_KEY),
        (Step, "script", "the command of a step is `run`"),
        (Step, "command", "the command of a step is `run`"),
        (Step, "working_directory", "the folder of a step is `dir`"),
        (Step, "working-directory", "the folder of a step is `dir`"),
        (Step, "workdir", "the folder of a step is `dir`"),
        (Step, "cwd", "the folder of a step is `dir`"),
        (Step, "uses", "a step is a command: `run`"),
        (Resources, "cpu", "did you mean `cpus`?"),
        (Resources, "mem", "did you mean `memory`?"),
        (Artifact, "path", "did you mean `paths`? It takes an array: `paths = [\"out/**\"]`"),
        (Artifact, "expire_in", "how long files are kept is `keep`"),
    ]
};

/// The key of a name in a scope.
pub fn find(scope: Scope, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.scope == scope && key.name == name)
}

/// The names of the keys that this version carries out in a scope.
pub(crate) fn names(scope: Scope) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(move |key| key.scope == scope && key.status == Status::Now).map(|key| key.name)
}

/// What to write instead of a word that is no key of a scope, where that is known.
pub(crate) fn hint(scope: Scope, word: &str) -> Option<&'static str> {
    HINTS.iter().find(|(at, known, _)| *at == scope && *known == word).map(|(_, _, help)| *help)
}

/// The table as Markdown, one part for each scope.
pub fn markdown() -> String {
    let mut page = String::new();
    for scope in Scope::ALL {
        let (now, later): (Vec<&Key>, Vec<&Key>) =
            KEYS.iter().filter(|key| key.scope == scope).partition(|key| key.status == Status::Now);
        page.push_str(&format!("### {}\n\n", scope.title()));
        page.push_str("| key | takes | default | example | meaning |\n|---|---|---|---|---|\n");
        for key in now {
            let row = [key.kind, key.default, &format!("`{}`", key.example), key.meaning];
            let row: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            page.push_str(&format!("| `{}` | {} |\n", key.name, row.join(" | ")));
        }
        if !later.is_empty() {
            page.push_str("\nKnown, but not carried out by this version:\n\n");
            for key in later {
                page.push_str(&format!("- `{}`: {}\n", key.name, key.meaning));
            }
        }
        page.push('\n');
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_stands_twice_and_no_hint_speaks_of_a_key() {
        for (at, key) in KEYS.iter().enumerate() {
            let twin = KEYS[at + 1..].iter().find(|other| other.scope == key.scope && other.name == key.name);
            assert_eq!(twin, None);
            assert!(key.meaning.ends_with('.'), "{}", key.name);
        }
        for (scope, word, _) in HINTS {
            assert_eq!(find(*scope, word), None, "{word} is a key");
        }
    }
}
