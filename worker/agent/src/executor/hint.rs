//! What a failed step's last words say about how to mend it, where they leave no doubt. Pure.

use buildyard_types::job::JobUser;

/// Bytes of a step's output that are kept for a look at its end.
const KEPT_BYTES: usize = 4 * 1024;
/// Exit code of apt, apt-get and aptitude when they could not do what was asked.
const APT_FAILED: i32 = 100;
/// What apt and dpkg say to a user who is not root. Not translated: steps have the locale C.
const NOT_ROOT: [&str; 4] = [
    "E: Could not open lock file /var/lib/",
    "E: Unable to acquire the dpkg frontend lock",
    "E: Unable to lock directory /var/lib/apt/lists",
    "dpkg: error: requested operation requires superuser privilege",
];

/// The end of what a step printed. What was read by an earlier process of this worker is missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LastWords {
    step: u16,
    bytes: Vec<u8>,
}

impl LastWords {
    /// Takes a piece of the output.
    pub fn take(&mut self, step: u16, output: &[u8]) {
        if self.step != step {
            self.step = step;
            self.bytes.clear();
        }
        let output = &output[output.len().saturating_sub(KEPT_BYTES)..];
        self.bytes.extend_from_slice(output);
        // In one move for many small pieces.
        if self.bytes.len() > 2 * KEPT_BYTES {
            self.bytes.drain(..self.bytes.len() - KEPT_BYTES);
        }
    }

    /// What to tell the author of a job whose step ended like this.
    pub fn hint(&self, step: usize, exit_code: i32, user: JobUser) -> Option<String> {
        if exit_code != APT_FAILED || usize::from(self.step) != step {
            return None;
        }
        match user {
            JobUser::Build => {}
            JobUser::Root => return None,
        }
        let text = String::from_utf8_lossy(&self.bytes[self.bytes.len().saturating_sub(KEPT_BYTES)..]);
        let says = |line: &str| NOT_ROOT.iter().any(|words| line.trim_start().starts_with(words));
        text.lines().any(says).then(|| {
            "packages are installed by root, and this job does not run as root: use an image that has them, or \
             `user = \"root\"` where the worker's policy allows it"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APT: &str = "Reading package lists...\nE: Could not open lock file /var/lib/dpkg/lock-frontend - open (13: \
                       Permission denied)\nE: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), \
                       are you root?\n";

    fn hint(output: &[&str], exit_code: i32, user: JobUser) -> bool {
        let mut words = LastWords::default();
        for piece in output {
            words.take(1, piece.as_bytes());
        }
        words.hint(1, exit_code, user).is_some()
    }

    #[test]
    fn who_installs_packages_without_being_root_is_told() {
        assert!(hint(&[APT], 100, JobUser::Build));
        assert!(hint(&[&APT[..60], &APT[60..]], 100, JobUser::Build), "in pieces");
        let update = "E: Unable to lock directory /var/lib/apt/lists/\n";
        assert!(hint(&[&"x\n".repeat(10_000), update], 100, JobUser::Build), "after much else");
    }

    #[test]
    fn without_plain_evidence_nothing_is_said() {
        assert!(!hint(&[APT], 1, JobUser::Build), "another program failed");
        assert!(!hint(&[APT], 100, JobUser::Root), "root may");
        assert!(!hint(&["E: Unable to locate package gcc-99\n"], 100, JobUser::Build));
        assert!(!hint(&["echo 'E: Could not open lock file /var/lib/'\n"], 100, JobUser::Build));
        assert!(!hint(&[APT, &"x\n".repeat(10_000)], 100, JobUser::Build), "long ago");
        let mut words = LastWords::default();
        words.take(1, APT.as_bytes());
        assert_eq!(words.hint(2, 100, JobUser::Build), None, "of the step before");
        words.take(2, b"x");
        assert_eq!(words.hint(2, 100, JobUser::Build), None);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut words = LastWords::default();
        for _ in 0..1_000 {
            words.take(0, &[b'x'; 1_000]);
            assert!(words.bytes.len() <= 2 * KEPT_BYTES);
        }
        words.take(0, &[b'x'; 1 << 20]);
        assert!(words.bytes.len() <= 2 * KEPT_BYTES);
    }
}
