//! Reads jobs: their settings, steps, needs and artifacts.

use std::collections::BTreeMap;

use buildyard_types::LabelExpr;
use buildyard_types::job::{ArtifactSpec, JobSpec, JobUser, NetworkMode, Shell, StepSpec};

use crate::defaults;
use crate::document::{Entry, Node, Table, Value};
use crate::limits::{MAX_ARTIFACTS, MAX_GLOBS, MAX_NEEDS, MAX_SCRIPT_BYTES, MAX_STEPS};
use crate::names::{clean_folder, fault_of_name, fault_of_path, fault_of_step_name};
use crate::problem::{Code, Span, quote};
use crate::reader::{ElementNode, Field, Reader, Surroundings};
use crate::reference::Scope;
use crate::values::{SomeCheckout, SomeResources, SomeTimeouts};

const NETWORKS: [(&str, NetworkMode); 3] =
    [("none", NetworkMode::None), ("egress", NetworkMode::Egress), ("host", NetworkMode::Host)];
const USERS: [(&str, JobUser); 2] = [("build", JobUser::Build), ("root", JobUser::Root)];
const SHELLS: [(&str, Shell); 2] = [("sh", Shell::Sh), ("bash", Shell::Bash)];

/// What `[defaults]` and a job can both say.
#[derive(Default)]
pub(crate) struct Settings {
    image: Option<String>,
    /// Written, if perhaps not readable: then nobody says that it is missing.
    has_image: bool,
    labels: Option<LabelExpr>,
    timeouts: SomeTimeouts,
    env: BTreeMap<String, String>,
    resources: SomeResources,
    network: Option<NetworkMode>,
    user: Option<JobUser>,
    checkout: SomeCheckout,
    shell: Option<Shell>,
}

/// A job, and the places that later checks speak of.
pub(crate) struct ReadJob {
    pub(crate) spec: JobSpec,
    /// Its name in its header.
    pub(crate) at: Span,
    /// The place of each of its needs, beside `spec.needs`.
    pub(crate) needs_at: Vec<Span>,
    /// Whether image and steps are all there.
    pub(crate) is_complete: bool,
}

impl<'s> Reader<'s> {
    /// The settings of `[defaults]` or of a job. `path` is the table's name: `jobs.test`.
    pub(crate) fn settings(&mut self, table: &'s Table, scope: Scope, path: &str) -> Settings {
        let get = |reader: &Self, name| reader.field(table, scope, name);
        let header = |name| format!("[{path}.{name}]");
        let image = get(self, "image");
        Settings {
            has_image: image.is_some(),
            image: image.and_then(|field| self.image(field)),
            labels: get(self, "labels").and_then(|field| self.labels(field)),
            timeouts: get(self, "timeout")
                .map(|field| self.timeouts(field, &header("timeout")))
                .unwrap_or_default(),
            env: get(self, "env").map(|field| self.env(field, scope)).unwrap_or_default(),
            resources: get(self, "resources")
                .map(|field| self.resources(field, &header("resources")))
                .unwrap_or_default(),
            network: get(self, "network").and_then(|field| self.word(field, &NETWORKS)),
            user: get(self, "user").and_then(|field| self.word(field, &USERS)),
            checkout: get(self, "checkout")
                .map(|field| self.checkout(field, &header("checkout")))
                .unwrap_or_default(),
            shell: get(self, "shell").and_then(|field| self.word(field, &SHELLS)),
        }
    }

    /// Reads one job.
    pub(crate) fn job(&mut self, entry: &'s Entry, table: &'s Table, defaults: &Settings) -> ReadJob {
        let name = &entry.key;
        self.name_of(name, entry.key_span, fault_of_name);
        let path = format!("jobs.{name}");
        self.check_keys(table, Scope::Job, &Surroundings { header: "", first: None });
        let own = self.settings(table, Scope::Job, &path);
        let shell = own.shell.or(defaults.shell).unwrap_or(defaults::SHELL);
        let steps = self.commands(entry, table, shell, &path);
        let (needs, needs_at) = self.needs(table);
        let artifacts = self.artifacts(table, &path);
        if !own.has_image && !defaults.has_image && self.is_whole && !borrows(table) {
            self.missing_image(entry);
        }
        let mut env = defaults.env.clone();
        env.extend(own.env);
        let image = own.image.or_else(|| defaults.image.clone().filter(|_| !own.has_image));
        let is_complete = image.is_some() && steps.is_some();
        let spec = JobSpec {
            name: name.clone(),
            image: image.unwrap_or_default(),
            labels: own.labels.or_else(|| defaults.labels.clone()).unwrap_or(LabelExpr::Any),
            needs,
            env,
            steps: steps.unwrap_or_default(),
            resources: own.resources.complete(&defaults.resources),
            timeout_ms: own.timeouts.job.or(defaults.timeouts.job).unwrap_or(defaults::JOB_TIMEOUT),
            queue_timeout_ms: own
                .timeouts
                .queue
                .or(defaults.timeouts.queue)
                .unwrap_or(defaults::QUEUE_TIMEOUT),
            artifacts,
            network: own.network.or(defaults.network).unwrap_or(defaults::NETWORK),
            user: own.user.or(defaults.user).unwrap_or(defaults::USER),
            checkout: own.checkout.complete(&defaults.checkout),
        };
        ReadJob { spec, at: entry.key_span, needs_at, is_complete }
    }

    pub(crate) fn name_of(&mut self, name: &str, at: Span, fault: fn(&str) -> Option<String>) {
        if let Some(fault) = fault(name) {
            self.report(at, Code::BadName, |_| (format!("{} cannot be a name: {fault}", quote(name)), None));
        }
    }

    fn missing_image(&mut self, entry: &Entry) {
        self.report(entry.key_span, Code::MissingImage, |_| {
            let message = format!("job {} has no image, and `[defaults]` names none", quote(&entry.key));
            (message, Some("add `image = \"…\"` here, or below `[defaults]` for all jobs".to_owned()))
        });
    }

    /// The steps of a job, from `run` or from `steps`. `None` if there are none that could be read.
    fn commands(
        &mut self,
        job: &'s Entry,
        table: &'s Table,
        shell: Shell,
        path: &str,
    ) -> Option<Vec<StepSpec>> {
        let run = self.field(table, Scope::Job, "run");
        let steps = self.field(table, Scope::Job, "steps");
        match (run, steps) {
            (Some(run), Some(steps)) => {
                let line = self.source.line(steps.key_span.start);
                self.report(run.key_span, Code::RunAndSteps, |_| {
                    let message = format!("job {} has both `run` and `steps` (line {line})", quote(&job.key));
                    (message, Some("keep one: `run` is short for a single step".to_owned()))
                });
                self.script(run);
                self.steps(steps, shell, path)
            }
            (Some(run), None) => {
                let run = self.script(run)?;
                let step = StepSpec {
                    name: defaults::ONLY_STEP_NAME.to_owned(),
                    run,
                    shell,
                    dir: String::new(),
                    env: BTreeMap::new(),
                    timeout_ms: None,
                };
                Some(vec![step])
            }
            (None, Some(steps)) => self.steps(steps, shell, path),
            (None, None) => {
                if self.is_whole && !borrows(table) {
                    self.no_command(job, table);
                }
                None
            }
        }
    }

    fn no_command(&mut self, job: &Entry, table: &Table) {
        let inner = |name| table.get(name).and_then(|entry| entry.node.value.as_table());
        let has_command = |id| self.table(id).get("run").or_else(|| self.table(id).get("steps"));
        if ["resources", "checkout"].into_iter().filter_map(inner).any(|id| has_command(id).is_some()) {
            // It slipped in there, and that is on record as a key in the wrong table.
            return;
        }
        // `run` below `[jobs.test.env]` is a fine variable to TOML.
        let slipped = inner("env").and_then(has_command);
        self.report(job.key_span, Code::MissingRun, |reader| {
            let message = format!("job {} has no command: neither `run` nor `steps`", quote(&job.key));
            let help = match slipped {
                Some(entry) => format!(
                    "`{}` on line {} is a variable, because it stands below the header of `env`: move it up",
                    entry.key,
                    reader.source.line(entry.key_span.start),
                ),
                None => "add `run = \"…\"`, or several `[[jobs.NAME.steps]]`".to_owned(),
            };
            (message, Some(help))
        });
    }

    fn script(&mut self, field: Field<'s>) -> Option<String> {
        let text = self.text(field)?;
        if text.trim().is_empty() {
            self.report(field.node.span, Code::EmptyRun, |_| ("this command is empty".to_owned(), None));
            return None;
        }
        if text.len() > MAX_SCRIPT_BYTES {
            self.report(field.key_span, Code::OutOfRange, |_| {
                let message =
                    format!("a script has at most {MAX_SCRIPT_BYTES} bytes, this one has {}", text.len());
                (message, Some("put it into a file of the repository and run that".to_owned()))
            });
            return None;
        }
        Some(text.to_owned())
    }

    fn steps(&mut self, field: Field<'s>, shell: Shell, path: &str) -> Option<Vec<StepSpec>> {
        let elements = self.elements(field)?;
        if elements.is_empty() {
            if !self.is_whole {
                return None;
            }
            self.report(field.node.span, Code::MissingRun, |_| {
                let help = format!("for example `{}`", field.key.example);
                ("this list of steps is empty".to_owned(), Some(help))
            });
            return None;
        }
        let header = format!("[[{path}.steps]]");
        let around = Surroundings { header: &header, first: elements.first().map(|element| element.at) };
        let mut steps = Vec::new();
        let mut names: BTreeMap<String, Span> = BTreeMap::new();
        let mut all_read = true;
        for (index, element) in elements.iter().enumerate() {
            if index == MAX_STEPS {
                self.report(element.at, Code::TooMany, |_| {
                    (format!("a job has at most {MAX_STEPS} steps"), Some("split the job".to_owned()))
                });
                return None;
            }
            let table = match element.node {
                ElementNode::Table(table) => table,
                ElementNode::Other(node) => {
                    self.no_table(node, "step", "{ run = \"make\" }");
                    all_read = false;
                    continue;
                }
            };
            let (name, name_at) = self.step_name(table, index + 1, element.at);
            self.unique(&mut names, &name, name_at, "steps");
            match self.step(table, name, element.at, shell, &around) {
                Some(step) => steps.push(step),
                None => all_read = false,
            }
        }
        all_read.then_some(steps)
    }

    fn no_table(&mut self, node: &Node, what: &str, example: &str) {
        if matches!(node.value, Value::Bad) {
            return;
        }
        self.report(node.span, Code::WrongType, |_| {
            let message = format!("expected a table for each {what}, found {}", node.value.describe());
            (message, Some(format!("for example `{example}`")))
        });
    }

    fn unique(&mut self, names: &mut BTreeMap<String, Span>, name: &str, at: Span, what: &str) {
        let Some(first) = names.insert(name.to_owned(), at) else { return };
        self.report(at, Code::DuplicateName, |reader| {
            let line = reader.source.line(first.start);
            let message = format!("two {what} of this job are called {}", quote(name));
            (message, Some(format!("the other one is on line {line}; names tell them apart in logs")))
        });
    }

    fn step_name(&mut self, table: &'s Table, number: usize, at: Span) -> (String, Span) {
        let written = self.field(table, Scope::Step, "name");
        let text = written.and_then(|field| self.text(field).map(|text| (text, field.node.span)));
        match text {
            Some((text, span)) => {
                self.name_of(text, span, fault_of_step_name);
                (text.to_owned(), span)
            }
            None => (defaults::step_name(number), at),
        }
    }

    fn step(
        &mut self,
        table: &'s Table,
        name: String,
        at: Span,
        shell: Shell,
        around: &Surroundings<'_>,
    ) -> Option<StepSpec> {
        self.check_keys(table, Scope::Step, around);
        let get = |reader: &Self, name| reader.field(table, Scope::Step, name);
        let shell = get(self, "shell").and_then(|field| self.word(field, &SHELLS)).unwrap_or(shell);
        let dir = get(self, "dir").and_then(|field| self.folder(field)).unwrap_or_default();
        let env = get(self, "env").map(|field| self.env(field, Scope::Step)).unwrap_or_default();
        let timeout_ms = get(self, "timeout").and_then(|field| self.duration(field));
        let Some(run) = get(self, "run") else {
            if self.is_whole {
                self.report(at, Code::MissingRun, |_| {
                    ("this step has no `run`".to_owned(), Some("add `run = \"…\"`".to_owned()))
                });
            }
            return None;
        };
        let run = self.script(run)?;
        Some(StepSpec { name, run, shell, dir, env, timeout_ms })
    }

    fn folder(&mut self, field: Field<'s>) -> Option<String> {
        let text = self.text(field)?;
        if let Some(fault) = fault_of_path(text) {
            self.report(field.node.span, Code::BadPath, |_| {
                let message = format!("{} cannot be used: {fault}", quote(text));
                (message, Some("for example `dir = \"server\"`".to_owned()))
            });
            return None;
        }
        Some(clean_folder(text))
    }

    fn needs(&mut self, table: &'s Table) -> (Vec<String>, Vec<Span>) {
        let mut needs: Vec<String> = Vec::new();
        let mut places: Vec<Span> = Vec::new();
        let Some(field) = self.field(table, Scope::Job, "needs") else { return (needs, places) };
        if let Value::Tables(list) = &field.node.value {
            for (id, at) in list {
                let need = self.need_table(self.document.table(*id), *at);
                self.add_need(need, &mut needs, &mut places);
            }
            return (needs, places);
        }
        for node in self.array(field).unwrap_or(&[]) {
            let need = match node.value.as_table() {
                Some(id) => self.need_table(self.table(id), node.span),
                None => self.text_of(field, node).map(|text| (text, node.span)),
            };
            self.add_need(need, &mut needs, &mut places);
        }
        (needs, places)
    }

    fn need_table(&mut self, table: &'s Table, at: Span) -> Option<(&'s str, Span)> {
        self.check_keys(table, Scope::Need, &Surroundings { header: "needs", first: Some(at) });
        let Some(job) = self.field(table, Scope::Need, "job") else {
            self.missing_key(at, "job", "this need");
            return None;
        };
        self.text(job).map(|text| (text, job.node.span))
    }

    fn missing_key(&mut self, at: Span, key: &str, what: &str) {
        if self.is_whole {
            self.report(at, Code::MissingKey, |_| (format!("{what} has no `{key}`"), None));
        }
    }

    fn add_need(&mut self, need: Option<(&str, Span)>, needs: &mut Vec<String>, places: &mut Vec<Span>) {
        let Some((name, at)) = need else { return };
        if needs.len() == MAX_NEEDS {
            return self
                .report(at, Code::TooMany, |_| (format!("a job needs at most {MAX_NEEDS} others"), None));
        }
        if let Some(first) = needs.iter().position(|other| other == name) {
            let line = self.source.line(places[first].start);
            return self.report(at, Code::DuplicateNeed, |_| {
                (
                    format!("{} is needed twice (first on line {line})", quote(name)),
                    Some("remove one".to_owned()),
                )
            });
        }
        needs.push(name.to_owned());
        places.push(at);
    }

    fn artifacts(&mut self, table: &'s Table, path: &str) -> Vec<ArtifactSpec> {
        let mut artifacts = Vec::new();
        let Some(field) = self.field(table, Scope::Job, "artifacts") else { return artifacts };
        let Some(elements) = self.elements(field) else { return artifacts };
        let header = format!("[[{path}.artifacts]]");
        let around = Surroundings { header: &header, first: elements.first().map(|element| element.at) };
        let mut names = BTreeMap::new();
        for (index, element) in elements.iter().enumerate() {
            if index == MAX_ARTIFACTS {
                self.report(element.at, Code::TooMany, |_| {
                    (format!("a job has at most {MAX_ARTIFACTS} artifacts"), None)
                });
                break;
            }
            match element.node {
                ElementNode::Table(table) => {
                    artifacts.extend(self.artifact(table, element.at, &mut names, &around));
                }
                ElementNode::Other(node) => self.no_table(node, "artifact", field.key.example),
            }
        }
        artifacts
    }

    fn artifact(
        &mut self,
        table: &'s Table,
        at: Span,
        names: &mut BTreeMap<String, Span>,
        around: &Surroundings<'_>,
    ) -> Option<ArtifactSpec> {
        self.check_keys(table, Scope::Artifact, around);
        let get = |reader: &Self, name| reader.field(table, Scope::Artifact, name);
        let name = get(self, "name");
        let text = name.and_then(|field| self.text(field));
        match (name, text) {
            (Some(field), Some(text)) => {
                self.name_of(text, field.node.span, fault_of_name);
                self.unique(names, text, field.node.span, "artifacts");
            }
            (Some(_), None) => {}
            (None, _) => self.missing_key(at, "name", "this artifact"),
        }
        let paths = get(self, "paths");
        if paths.is_none() {
            self.missing_key(at, "paths", "this artifact");
        }
        let paths = paths.map(|field| self.globs(field)).unwrap_or_default();
        let required = get(self, "required").and_then(|field| self.boolean(field)).unwrap_or(false);
        let keep_ms = get(self, "keep").and_then(|field| self.duration(field)).unwrap_or(defaults::KEEP);
        text.map(|name| ArtifactSpec { name: name.to_owned(), paths, required, keep_ms })
    }

    fn globs(&mut self, field: Field<'s>) -> Vec<String> {
        let Some(nodes) = self.array(field) else { return Vec::new() };
        let mut globs = Vec::new();
        if nodes.len() > MAX_GLOBS {
            let at = nodes[MAX_GLOBS].span;
            self.report(at, Code::TooMany, |_| (format!("an artifact has at most {MAX_GLOBS} globs"), None));
        }
        let mut takes_in = false;
        let mut has_fault = false;
        for node in nodes.iter().take(MAX_GLOBS) {
            let Some(glob) = self.text_of(field, node) else {
                has_fault = true;
                continue;
            };
            takes_in |= !glob.starts_with('!');
            if let Some(fault) = fault_of_path(glob.strip_prefix('!').unwrap_or(glob)) {
                has_fault = true;
                self.report(node.span, Code::BadPath, |_| {
                    (format!("{} cannot be used: {fault}", quote(glob)), None)
                });
            }
            globs.push(glob.to_owned());
        }
        if !takes_in && !has_fault {
            self.report(field.node.span, Code::BadText, |_| {
                let message = "these globs take no file in".to_owned();
                (message, Some(format!("for example `{}`", field.key.example)))
            });
        }
        globs
    }
}

/// Whether a job takes its image and command from elsewhere, by keys that are refused as not carried out yet. Then
/// saying that they are missing would only lead astray.
fn borrows(table: &Table) -> bool {
    ["extends", "image_build"].into_iter().any(|key| table.get(key).is_some())
}
