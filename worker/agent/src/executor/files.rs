//! What the worker keeps of one attempt beside its log, so that a restarted worker knows how far it had come.
//!
//! | file | there when |
//! |---|---|
//! | `ctl/` | a container was about to be made; it sees this folder |
//! | `handed` | init was about to get the job: from here on there are frames to lose |
//! | `frames` | steps began and ended; init's own frames, one behind the other |
//! | `end` | the attempt was judged; its container is of no further use |
//!
//! They are written before init's frames are acknowledged and never synced: a killed process leaves its writes
//! with the kernel, and a power cut takes the container along.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use buildyard_init::protocol::{End, Frame, FromInit, StepHow};
use buildyard_types::worker::{AttemptOrder, EndReport, StepReport};
use buildyard_types::{Millis, Timestamp};
use serde::{Deserialize, Serialize};

use super::outcome::{self, Ending};
use crate::data::make_dir;

/// Most bytes of the file `frames`: two frames for each step of the longest job, and the end.
const MAX_FRAMES_BYTES: u64 = 16 << 20;

/// What is known of an attempt when its job is handed over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Handed {
    /// Config digest of the image.
    pub image_digest: Option<String>,
    /// Time that workspace, checkout and container took.
    pub prepare_ms: Millis,
    /// The container whose network namespace its own joined.
    #[serde(default)]
    pub holder: Option<String>,
}

/// The folder of one attempt.
#[derive(Debug, Clone)]
pub struct AttemptFiles {
    folder: PathBuf,
}

impl AttemptFiles {
    /// The folder, which need not exist.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Makes the folder and clears away how far an earlier try had come. Its log stays: it may be with the
    /// coordinator already.
    pub fn begin(&self) -> io::Result<()> {
        make_dir(&self.folder, 0o711)?;
        for name in ["handed", "frames", "end"] {
            remove_file(&self.folder.join(name))?;
        }
        make_dir(&self.control(), 0o711)
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder that the container sees; init's socket lies in it.
    pub fn control(&self) -> PathBuf {
        self.folder.join("ctl")
    }

    /// Whether a container may have been made.
    pub fn was_begun(&self) -> bool {
        self.control().exists()
    }

    /// Notes that init is about to get the job.
    pub fn hand(&self, handed: &Handed) -> io::Result<()> {
        self.replace("handed", handed)
    }

    /// What was known when init got the job; `None` if it did not get it.
    pub fn handed(&self) -> io::Result<Option<Handed>> {
        self.read("handed")
    }

    /// Notes the end.
    pub fn end(&self, report: &EndReport) -> io::Result<()> {
        self.replace("end", report)
    }

    /// The end, if the attempt was judged.
    pub fn ended(&self) -> io::Result<Option<EndReport>> {
        self.read("end")
    }

    /// Takes everything away. Mounts in it must be gone.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn replace(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let new = self.folder.join("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        fs::rename(new, self.folder.join(name))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.folder.join(name)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A step as far as it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSeen {
    /// When it began, by init's clock.
    pub began: Timestamp,
    /// When and how it ended.
    pub ended: Option<(Timestamp, StepHow)>,
    /// Whether its disk was full at some time.
    pub disk_full: bool,
}

/// What init told of steps. Taking a frame twice changes nothing.
#[derive(Debug, Default)]
pub struct Story {
    steps: Vec<StepSeen>,
    end: Option<End>,
    file: Option<File>,
    bytes: Vec<u8>,
}

impl Story {
    /// Reads what an earlier process of this worker took, and goes on from there.
    pub fn open(files: &AttemptFiles) -> io::Result<Self> {
        let path = files.folder().join("frames");
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(&path)?;
        if file.metadata()?.len() > MAX_FRAMES_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file of steps is too long"));
        }
        let bytes = fs::read(&path)?;
        let mut story = Self::default();
        let mut rest = &bytes[..];
        while let Ok(Some((frame, length))) = FromInit::decode(rest) {
            if let FromInit::Numbered { at_ms, frame, .. } = frame {
                story.note(Timestamp(at_ms), &frame);
            }
            rest = &rest[length..];
        }
        if !rest.is_empty() {
            // Torn by the end of the process. Its frame was not acknowledged and comes again.
            file.set_len((bytes.len() - rest.len()) as u64)?;
        }
        story.file = Some(file);
        Ok(story)
    }

    /// Takes a frame and keeps it, unless it is output.
    pub fn take(&mut self, sequence: u64, at_ms: u64, frame: &Frame<'_>) -> io::Result<()> {
        match frame {
            Frame::Output { .. } => return Ok(()),
            Frame::StepStart { .. } | Frame::StepEnd(_) | Frame::End(_) => {}
        }
        self.note(Timestamp(at_ms), frame);
        let Some(file) = &mut self.file else { return Ok(()) };
        self.bytes.clear();
        let numbered = FromInit::Numbered { sequence, at_ms, frame: frame.clone() };
        numbered.encode(&mut self.bytes).map_err(io::Error::other)?;
        file.write_all(&self.bytes)
    }

    fn note(&mut self, at: Timestamp, frame: &Frame<'_>) {
        match frame {
            Frame::Output { .. } => {}
            Frame::StepStart { step } => {
                if usize::from(*step) >= self.steps.len() {
                    self.steps.push(StepSeen { began: at, ended: None, disk_full: false });
                }
            }
            Frame::StepEnd(end) => {
                if let Some(step) = self.steps.get_mut(usize::from(end.step)) {
                    step.ended = Some((at, end.how));
                    step.disk_full = end.disk.is_some_and(|disk| disk.looks_full());
                }
            }
            Frame::End(end) => self.end = Some(end.clone()),
        }
    }

    /// The steps that began.
    pub fn steps(&self) -> &[StepSeen] {
        &self.steps
    }

    /// How each of them ended.
    pub fn hows(&self) -> Vec<Option<StepHow>> {
        self.steps.iter().map(|step| step.ended.map(|(_, how)| how)).collect()
    }

    /// How the job ended.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// How its container was left, if that is all there is: init's own word counts, also where it was taken by an
    /// earlier process of this worker and init is gone since.
    pub(super) fn ending(&self, left: Ending) -> Ending {
        match (&self.end, left) {
            (Some(end), Ending::Silent { .. } | Ending::Vanished) => Ending::Told(end.clone()),
            (Some(_) | None, left) => left,
        }
    }

    /// The steps for the report. One that has no end of its own ended with the attempt.
    pub fn reports(&self, order: &AttemptOrder, now: Timestamp) -> Vec<StepReport> {
        let report = |(index, step): (usize, &StepSeen)| {
            let name = order.spec.steps.get(index).map(|step| step.name.clone()).unwrap_or_default();
            let (ended, exit_code) = match step.ended {
                Some((at, how)) => (at, outcome::exit_code(how)),
                None => (now, None),
            };
            StepReport { name, exit_code, duration_ms: ended.since(step.began) }
        };
        self.steps.iter().enumerate().map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_init::protocol::{DiskLow, EndWhy, StepEnd, Usage};
    use buildyard_types::{Outcome, RunId};

    fn step_end(step: u16, how: StepHow, free_bytes: u64) -> Frame<'static> {
        let disk = Some(DiskLow { free_bytes, free_inodes: 9 });
        Frame::StepEnd(StepEnd { step, how, usage: Usage::default(), disk })
    }

    #[test]
    fn a_story_goes_on_where_it_was_torn() {
        let temp = tempfile::tempdir().unwrap();
        let files = AttemptFiles::new(temp.path().join("att-1-0-1"));
        files.begin().unwrap();
        let mut story = Story::open(&files).unwrap();
        story.take(0, 1_000, &Frame::StepStart { step: 0 }).unwrap();
        story.take(1, 1_500, &step_end(0, StepHow::Exit(0), 1 << 30)).unwrap();
        story.take(2, 1_600, &Frame::StepStart { step: 1 }).unwrap();
        drop(story);
        let path = files.folder().join("frames");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();

        let mut story = Story::open(&files).unwrap();
        assert_eq!(story.steps().len(), 1);
        // Init sends everything again that was not acknowledged, and some that was.
        for _ in 0..2 {
            story.take(1, 1_500, &step_end(0, StepHow::Exit(0), 1 << 30)).unwrap();
            story.take(2, 1_600, &Frame::StepStart { step: 1 }).unwrap();
            story.take(3, 2_600, &step_end(1, StepHow::Stopped, 0)).unwrap();
        }
        let end = End { why: EndWhy::LogCap, usage: Usage::default(), log_bytes: 7, disk: None };
        story.take(4, 2_700, &Frame::End(end.clone())).unwrap();
        drop(story);

        let story = Story::open(&files).unwrap();
        assert_eq!(story.hows(), [Some(StepHow::Exit(0)), Some(StepHow::Stopped)]);
        assert!(story.steps()[1].disk_full && !story.steps()[0].disk_full);
        assert_eq!(story.end(), Some(&end));
        let order = crate::testing::order(RunId(1).job(0).attempt(1));
        let reports = story.reports(&order, Timestamp(9_000));
        assert_eq!(reports[0].duration_ms, Millis(500));
        assert_eq!((reports[1].exit_code, reports[1].duration_ms), (None, Millis(1_000)));
    }

    #[test]
    fn how_far_an_attempt_had_come_is_known_after_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let files = AttemptFiles::new(temp.path().join("att-1-0-1"));
        assert!(!files.was_begun());
        files.begin().unwrap();
        assert!(files.was_begun());
        assert_eq!(files.handed().unwrap(), None);
        let handed = Handed { image_digest: Some("sha256:1".into()), prepare_ms: Millis(9), holder: None };
        files.hand(&handed).unwrap();
        assert_eq!(files.handed().unwrap(), Some(handed));
        let report = crate::testing::report(Outcome::Passed);
        files.end(&report).unwrap();
        assert_eq!(files.ended().unwrap(), Some(report));
        files.begin().unwrap();
        assert_eq!((files.handed().unwrap(), files.ended().unwrap()), (None, None), "a new try");
        files.remove().unwrap();
        files.remove().unwrap();
    }
}
