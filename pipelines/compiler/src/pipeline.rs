//! Reads a whole file: bytes in, pipeline and diagnostics out.

use std::borrow::Cow;

use buildyard_types::job::{Diagnostic, JobSpec, Pipeline};

use crate::document::{self, Entry, Value};
use crate::files::stem;
use crate::graph;
use crate::job::{ReadJob, Settings};
use crate::limits::{MAX_FILE_BYTES, MAX_JOBS, MAX_PIPELINE_BYTES};
use crate::names::fault_of_name;
use crate::problem::{Code, Problem, Problems, Source, Span, quote};
use crate::reader::{Reader, Surroundings};
use crate::reference::Scope;
use crate::suggest::Suggester;

/// All that could be made of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Understood {
    /// The jobs that could be read whole. Only if there are no diagnostics is it a pipeline that may run.
    pub pipeline: Pipeline,
    /// Every mistake, in the order of their places.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads a pipeline file. `file` is its path in the repository; `bytes` is its content.
///
/// # Errors
///
/// Every mistake of the file, in the order of their places.
pub fn compile(file: &str, bytes: &[u8]) -> Result<Pipeline, Vec<Diagnostic>> {
    let Understood { pipeline, diagnostics } = understand(file, bytes);
    if diagnostics.is_empty() { Ok(pipeline) } else { Err(diagnostics) }
}

/// Reads a pipeline file as far as it makes sense, and says everything that is wrong with it.
pub fn understand(file: &str, bytes: &[u8]) -> Understood {
    let nothing = |diagnostics| Understood {
        pipeline: Pipeline { name: stem(file).to_owned(), file: file.to_owned(), jobs: Vec::new() },
        diagnostics,
    };
    if bytes.len() > MAX_FILE_BYTES {
        return nothing(too_large(file, bytes.len()));
    }
    let text = match std::str::from_utf8(bytes) {
        // A byte order mark is no part of the first line's columns.
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => return nothing(not_utf8(file, bytes, error.valid_up_to())),
    };
    let source = Source::new(file, text);
    let mut problems = Problems::default();
    let document = document::parse(&source, &mut problems);
    let is_whole = problems.is_empty();
    let mut reader =
        Reader { source: &source, document: &document, problems, suggester: Suggester::new(), is_whole };
    let pipeline = reader.pipeline(file);
    Understood { pipeline, diagnostics: reader.problems.into_diagnostics(&source) }
}

fn too_large(file: &str, bytes: usize) -> Vec<Diagnostic> {
    let mut problems = Problems::default();
    problems.push(Problem {
        span: None,
        code: Code::FileTooLarge,
        message: format!("the file has {bytes} bytes, a pipeline file at most {MAX_FILE_BYTES}"),
        help: Some("split it into several files in `.buildyard/`".to_owned()),
    });
    problems.into_diagnostics(&Source::new(file, ""))
}

fn not_utf8(file: &str, bytes: &[u8], at: usize) -> Vec<Diagnostic> {
    let text: Cow<'_, str> = String::from_utf8_lossy(bytes);
    let source = Source::new(file, &text);
    let byte = bytes.get(at).copied().unwrap_or_default();
    let mut problems = Problems::default();
    // Up to the first bad byte the replaced text is the same, and there stands the replacement character.
    let place = Span::new(at, at + char::REPLACEMENT_CHARACTER.len_utf8());
    let help = "save the file as UTF-8".to_owned();
    problems.add(place, Code::NotUtf8, format!("the byte 0x{byte:02X} is no UTF-8"), Some(help));
    problems.into_diagnostics(&source)
}

impl<'s> Reader<'s> {
    fn pipeline(&mut self, file: &str) -> Pipeline {
        let root = self.document.root();
        self.check_keys(root, Scope::Pipeline, &Surroundings { header: "", first: None });
        let name = self.pipeline_name(file);
        let defaults = self.defaults();
        let jobs = self.jobs(&defaults);
        graph::check(self, &jobs);
        if jobs.is_empty() && self.problems.is_empty() {
            self.problems.push(Problem {
                span: None,
                code: Code::NoJobs,
                message: "this pipeline has no jobs".to_owned(),
                help: Some("add one: `[jobs.test]`, then `image = \"…\"` and `run = \"…\"`".to_owned()),
            });
        }
        let jobs: Vec<JobSpec> = jobs.into_iter().filter(|job| job.is_complete).map(|job| job.spec).collect();
        Pipeline { name, file: file.to_owned(), jobs }
    }

    fn pipeline_name(&mut self, file: &str) -> String {
        let written = self.field(self.document.root(), Scope::Pipeline, "name");
        match written.and_then(|field| self.text(field).map(|text| (text, field.node.span))) {
            Some((text, at)) => {
                self.name_of(text, at, fault_of_name);
                text.to_owned()
            }
            None => stem(file).to_owned(),
        }
    }

    fn defaults(&mut self) -> Settings {
        let Some(field) = self.field(self.document.root(), Scope::Pipeline, "defaults") else {
            return Settings::default();
        };
        let Some(table) = self.table_of(field) else { return Settings::default() };
        let around = Surroundings { header: "[defaults]", first: Some(field.key_span) };
        self.check_keys(table, Scope::Defaults, &around);
        self.settings(table, Scope::Defaults, "defaults")
    }

    fn jobs(&mut self, defaults: &Settings) -> Vec<ReadJob> {
        let Some(field) = self.field(self.document.root(), Scope::Pipeline, "jobs") else {
            return Vec::new();
        };
        let Some(table) = self.table_of(field) else { return Vec::new() };
        if let Some(extra) = table.entries.get(MAX_JOBS) {
            self.report(extra.key_span, Code::TooMany, |_| {
                (format!("a pipeline has at most {MAX_JOBS} jobs"), Some("split it into several".to_owned()))
            });
        }
        let mut jobs = Vec::new();
        let mut room = MAX_PIPELINE_BYTES;
        for entry in table.entries.iter().take(MAX_JOBS) {
            let Some(job) = self.job_entry(entry, defaults) else { continue };
            match room.checked_sub(stored_size(&job.spec)) {
                Some(left) => room = left,
                // The jobs behind it are not even read, and so nothing can be said of needs either.
                None => {
                    self.too_large(entry);
                    return Vec::new();
                }
            }
            jobs.push(job);
        }
        jobs
    }

    fn too_large(&mut self, entry: &Entry) {
        self.report(entry.key_span, Code::PipelineTooLarge, |_| {
            let message = format!(
                "with job {} the pipeline's jobs take more than {MAX_PIPELINE_BYTES} bytes, what `[defaults]` \
                 gives to each of them included",
                quote(&entry.key)
            );
            let help = "move large variables from `[defaults]` to the jobs that need them, or into a file".to_owned();
            (message, Some(help))
        });
    }

    fn job_entry(&mut self, entry: &'s Entry, defaults: &Settings) -> Option<ReadJob> {
        if let Some(id) = entry.node.value.as_table() {
            return Some(self.job(entry, self.table(id), defaults));
        }
        if !matches!(entry.node.value, Value::Bad) {
            self.report(entry.key_span, Code::WrongType, |_| {
                let found = entry.node.value.describe();
                let help = "a job begins with its header: `[jobs.NAME]`".to_owned();
                (format!("expected a table for the job {}, found {found}", quote(&entry.key)), Some(help))
            });
        }
        None
    }
}

/// The bytes of a job as JSON, which is how it is stored and sent.
fn stored_size(job: &JobSpec) -> usize {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // Names, numbers and texts always become JSON; were they not to, the job could not be stored either.
    serde_json::to_writer(&mut counter, job).map_or(usize::MAX, |()| counter.0)
}
