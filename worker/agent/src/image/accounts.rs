//! The passwd and group files that a job sees: the image's own entries, and an entry for whoever the job runs as.
//!
//! The image's files are its author's. Lines that are not of the form are left out, and what is left is bounded; the
//! entry that the job needs is there in any case.

use crate::engine::Owner;
use crate::workspace::HOME;

/// As whom jobs run where the image does not say.
const DEFAULT_ID: u32 = 1_000;
/// That user's name where the image has none for it.
const DEFAULT_NAME: &str = "build";
/// Lines that are kept of an image's file.
const MAX_LINES: usize = 4_096;
const MAX_LINE_BYTES: usize = 1_024;

/// Whom a job runs as, and the files that say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Accounts {
    pub(super) owner: Owner,
    pub(super) user_name: String,
    pub(super) passwd: String,
    pub(super) group: String,
}

/// One line, split at its colons.
struct Entry<'t> {
    fields: Vec<&'t str>,
    id: u32,
}

/// Lines with that many fields, a name and a number in the third.
fn entries(file: &[u8], fields: usize) -> Vec<Entry<'_>> {
    file.split(|byte| *byte == b'\n').filter_map(|line| entry(line, fields)).take(MAX_LINES).collect()
}

fn entry(line: &[u8], fields: usize) -> Option<Entry<'_>> {
    if line.len() > MAX_LINE_BYTES {
        return None;
    }
    let text = std::str::from_utf8(line).ok()?;
    let parts: Vec<&str> = text.split(':').collect();
    let plain = !text.chars().any(char::is_control) && parts.len() == fields && is_name(parts[0]);
    let id = parts.get(2)?.parse().ok()?;
    plain.then_some(Entry { fields: parts, id })
}

/// What may stand before the first colon, and in the variable USER.
fn is_name(text: &str) -> bool {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    starts && rest && text.len() <= 32
}

/// A number other than root's.
fn id(text: &str) -> Option<u32> {
    let id = text.parse().ok()?;
    // Beyond it some programs see negative numbers.
    (1..=i32::MAX as u32).contains(&id).then_some(id)
}

impl Accounts {
    /// From the image's `USER` and its two files.
    pub(super) fn of(user: &str, passwd: &[u8], group: &[u8]) -> Self {
        let users = entries(passwd, 7);
        let groups = entries(group, 4);
        let (uid_text, gid_text) = user.split_once(':').unwrap_or((user, ""));
        // A name would be looked up in a file of the image; a number means the same everywhere.
        let numeric = id(uid_text);
        let uid = numeric.unwrap_or(DEFAULT_ID);
        let known = users.iter().find(|entry| entry.id == uid);
        let given_gid = numeric.and(gid_text.parse().ok());
        let known_gid = known.and_then(|entry| entry.fields[3].parse().ok());
        let owner = Owner { uid, gid: given_gid.or(known_gid).unwrap_or(uid) };
        let user_name = known.map_or(DEFAULT_NAME, |entry| entry.fields[0]).to_owned();
        let passwd = passwd_file(&users, owner, &user_name);
        let group = group_file(&groups, owner.gid, &user_name);
        Self { owner, user_name, passwd, group }
    }
}

/// Root first, then the job's user, so that nothing in the image's file comes before them.
fn passwd_file(users: &[Entry<'_>], owner: Owner, name: &str) -> String {
    let mut text = "root:x:0:0:root:/root:/bin/sh\n".to_owned();
    text.push_str(&format!("{name}:x:{}:{}::{HOME}:/bin/sh\n", owner.uid, owner.gid));
    let others = users.iter().filter(|entry| entry.id != 0 && entry.id != owner.uid);
    for entry in others.filter(|entry| entry.fields[0] != name && entry.fields[0] != "root") {
        text.push_str(&entry.fields.join(":"));
        text.push('\n');
    }
    text
}

fn group_file(groups: &[Entry<'_>], gid: u32, name: &str) -> String {
    let known = groups.iter().find(|entry| entry.id == gid).map(|entry| entry.fields[0]);
    let mut text = "root:x:0:\n".to_owned();
    if gid != 0 {
        text.push_str(&format!("{}:x:{gid}:\n", known.unwrap_or(name)));
    }
    let ours = known.unwrap_or(name);
    let others = groups.iter().filter(|entry| entry.id != 0 && entry.id != gid);
    for entry in others.filter(|entry| entry.fields[0] != ours && entry.fields[0] != "root") {
        text.push_str(&entry.fields.join(":"));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\nnode:x:1000:1000:,,,:/home/node:/bin/bash\n\
        www:x:33:33::/var/www:/usr/sbin/nologin\n";
    const GROUP: &[u8] = b"root:x:0:\nnode:x:1000:\nwww:x:33:node\n";

    #[test]
    fn whom_a_job_runs_as() {
        for (user, uid, gid, name) in [
            ("", 1000, 1000, "node"),
            ("0", 1000, 1000, "node"),
            ("root", 1000, 1000, "node"),
            ("node", 1000, 1000, "node"),
            ("33", 33, 33, "www"),
            ("1001", 1001, 1001, "build"),
            ("1001:0", 1001, 0, "build"),
            ("1001:33", 1001, 33, "build"),
            ("1001:www", 1001, 1001, "build"),
            ("4294967295", 1000, 1000, "node"),
            ("-1", 1000, 1000, "node"),
            ("999999999999", 1000, 1000, "node"),
        ] {
            let found = Accounts::of(user, PASSWD, GROUP);
            assert_eq!(
                (found.owner.uid, found.owner.gid, found.user_name.as_str()),
                (uid, gid, name),
                "{user:?}"
            );
        }
    }

    #[test]
    fn the_files_hold_the_images_entries_and_the_jobs() {
        let found = Accounts::of("", PASSWD, GROUP);
        assert_eq!(
            found.passwd,
            "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/build:/bin/sh\n\
             www:x:33:33::/var/www:/usr/sbin/nologin\n"
        );
        assert_eq!(found.group, "root:x:0:\nnode:x:1000:\nwww:x:33:node\n");
        let bare = Accounts::of("", b"", b"");
        assert_eq!(bare.passwd, "root:x:0:0:root:/root:/bin/sh\nbuild:x:1000:1000::/home/build:/bin/sh\n");
        assert_eq!(bare.group, "root:x:0:\nbuild:x:1000:\n");
    }

    #[test]
    fn hostile_lines_are_left_out() {
        let endless = "x".repeat(100_000);
        let many = "u:x:7:7::/:/bin/sh\n".repeat(50_000);
        let hostile = format!(
            "root:x:0:0::/:/bin/sh\nroot:x:1000:0::/:/x\nevil\u{1b}[2J:x:5:5::/:/x\ntoor:x:0:0::/:/x\n\
             build:x:7777:7::/:/x\n$(id):x:8:8::/:/x\n:x:9:9::/:/x\n{endless}\nshort:x:3\n{many}"
        );
        let found = Accounts::of("", hostile.as_bytes(), hostile.as_bytes());
        assert_eq!(found.user_name, "root", "a name of the image's for that uid, odd but harmless");
        assert_eq!(found.owner, Owner { uid: 1000, gid: 0 });
        assert!(found.passwd.len() < MAX_LINES * 40, "{}", found.passwd.len());
        for text in ["\u{1b}", "toor", "$(id)", "xxx", "short"] {
            assert!(!found.passwd.contains(text), "{text}");
        }
        assert_eq!(found.passwd.lines().filter(|line| line.split(':').nth(2) == Some("0")).count(), 1);
    }

    proptest::proptest! {
        #[test]
        fn no_file_keeps_the_jobs_user_out(user in "\\PC{0,12}", passwd: Vec<u8>, group: Vec<u8>) {
            let found = Accounts::of(&user, &passwd, &group);
            let line = format!("{}:x:{}:{}::/home/build:/bin/sh", found.user_name, found.owner.uid, found.owner.gid);
            proptest::prop_assert!(found.passwd.lines().any(|other| other == line));
            proptest::prop_assert!(found.owner.uid != 0);
            proptest::prop_assert_eq!(found.passwd.lines().next(), Some("root:x:0:0:root:/root:/bin/sh"));
        }
    }
}
