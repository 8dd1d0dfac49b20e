//! Reads the values that several tables have in common: durations, sizes, labels, images, variables, limits.

use std::collections::BTreeMap;

use buildyard_types::job::{CheckoutSpec, Resources};
use buildyard_types::time::HumanDuration;
use buildyard_types::{ByteSize, LabelExpr, Millis};

use crate::defaults;
use crate::document::{Entry, Origin, Table, Value};
use crate::limits::{MAX_ENV_BYTES, MAX_ENV_VARIABLES};
use crate::names::{fault_of_image, fault_of_variable};
use crate::problem::{Code, quote, shorten};
use crate::reader::{Field, Reader, Surroundings};
use crate::reference::{self, Scope};

/// A year: nothing that a pipeline waits for or keeps lasts longer.
const MAX_DURATION: HumanDuration = HumanDuration(Millis::from_mins(365 * 24 * 60));
/// The engine takes no less than a hundredth of a processor.
const CPUS: (f64, f64) = (0.01, 1_024.0);
/// The engine takes no less than 6 MiB, and init needs some of it.
const MEMORY: (ByteSize, ByteSize) = (ByteSize::from_mib(16), ByteSize::from_gib(16 * 1_024));
/// A workspace with a file system of its own needs some MiB for itself.
const DISK: (ByteSize, ByteSize) = (ByteSize::from_mib(16), ByteSize::from_gib(64 * 1_024));
/// Init, a shell and what it starts; and no more than a kernel has.
const PIDS: (i64, i64) = (8, 4_000_000);
/// More history than any repository has.
const MAX_DEPTH: i64 = 10_000_000;

/// The keys of `resources` that are written.
#[derive(Debug, Clone, Default)]
pub(crate) struct SomeResources {
    cpu_millis: Option<u64>,
    memory: Option<ByteSize>,
    pids: Option<u64>,
    disk: Option<ByteSize>,
}

impl SomeResources {
    /// Fills what is not written from `[defaults]`, and the rest from the built-in defaults.
    pub(crate) fn complete(&self, below: &SomeResources) -> Resources {
        let base = defaults::resources();
        Resources {
            cpu_millis: self.cpu_millis.or(below.cpu_millis).unwrap_or(base.cpu_millis),
            memory: self.memory.or(below.memory).unwrap_or(base.memory),
            pids: self.pids.or(below.pids).unwrap_or(base.pids),
            disk: self.disk.or(below.disk).unwrap_or(base.disk),
        }
    }
}

/// The keys of `checkout` that are written.
#[derive(Debug, Clone, Default)]
pub(crate) struct SomeCheckout {
    depth: Option<Option<u32>>,
    tags: Option<bool>,
}

impl SomeCheckout {
    /// Fills what is not written from `[defaults]`, and the rest from the built-in defaults.
    pub(crate) fn complete(&self, below: &SomeCheckout) -> CheckoutSpec {
        let base = defaults::CHECKOUT;
        CheckoutSpec {
            depth: self.depth.or(below.depth).unwrap_or(base.depth),
            tags: self.tags.or(below.tags).unwrap_or(base.tags),
        }
    }
}

/// The keys of `timeout` that are written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SomeTimeouts {
    pub(crate) job: Option<Millis>,
    pub(crate) queue: Option<Millis>,
}

impl<'s> Reader<'s> {
    pub(crate) fn duration(&mut self, field: Field<'s>) -> Option<Millis> {
        if let Value::Integer(Some(number)) = field.node.value {
            self.report(field.node.span, Code::WrongType, |_| {
                let message =
                    format!("expected a duration in quotes for `{}`, found an integer", field.key.name);
                (message, Some(format!("with its unit: `{} = \"{number}m\"`", field.key.name)))
            });
            return None;
        }
        let text = self.text(field)?;
        let Ok(duration) = text.parse::<HumanDuration>() else {
            self.report(field.node.span, Code::BadDuration, |_| {
                let message = format!("{} is not a duration", quote(text));
                (message, Some(help_for_duration(text)))
            });
            return None;
        };
        if duration.0 == Millis(0) || duration > MAX_DURATION {
            self.report(field.node.span, Code::OutOfRange, |_| {
                let message =
                    format!("`{}` must be longer than nothing and at most {MAX_DURATION}", field.key.name);
                (message, None)
            });
            return None;
        }
        Some(duration.0)
    }

    /// `timeout` of a job or of the defaults: a duration, or a table.
    pub(crate) fn timeouts(&mut self, field: Field<'s>, header: &str) -> SomeTimeouts {
        let Some(id) = field.node.value.as_table() else {
            return SomeTimeouts { job: self.duration(field), queue: None };
        };
        let table = self.table(id);
        let around = Surroundings { header, first: Some(field.key_span) };
        self.check_keys(table, Scope::Timeout, &around);
        let [job, queue] = ["job", "queue"].map(|name| {
            let field = self.field(table, Scope::Timeout, name);
            field.and_then(|field| self.duration(field))
        });
        SomeTimeouts { job, queue }
    }

    fn size(&mut self, field: Field<'s>, (least, most): (ByteSize, ByteSize)) -> Option<ByteSize> {
        let text = self.text(field)?;
        let Ok(size) = text.parse::<ByteSize>() else {
            self.report(field.node.span, Code::BadSize, |_| {
                (format!("{} is not a size", quote(text)), Some(help_for_size(text)))
            });
            return None;
        };
        if size < least || size > most {
            self.report(field.node.span, Code::OutOfRange, |_| {
                let message = format!("`{}` must be from {least} to {most}, found {size}", field.key.name);
                (message, None)
            });
            return None;
        }
        Some(size)
    }

    fn whole_number(&mut self, field: Field<'s>, (least, most): (i64, i64)) -> Option<u64> {
        let Value::Integer(number) = field.node.value else {
            self.wrong_type(field, field.node);
            return None;
        };
        let inside = number.filter(|number| (least..=most).contains(number));
        if inside.is_none() {
            self.report(field.node.span, Code::OutOfRange, |_| {
                (format!("`{}` must be from {least} to {most}", field.key.name), None)
            });
        }
        inside.and_then(|number| u64::try_from(number).ok())
    }

    fn cpus(&mut self, field: Field<'s>) -> Option<u64> {
        let number = match field.node.value {
            Value::Integer(number) => number.map_or(f64::INFINITY, |number| number as f64),
            Value::Float(number) => number,
            _ => {
                self.wrong_type(field, field.node);
                return None;
            }
        };
        if !(CPUS.0..=CPUS.1).contains(&number) {
            self.report(field.node.span, Code::OutOfRange, |_| {
                (format!("`cpus` must be from {} to {}", CPUS.0, CPUS.1), None)
            });
            return None;
        }
        // Inside the bounds above, the product is a small positive number.
        Some((number * 1_000.0).round() as u64)
    }

    pub(crate) fn resources(&mut self, field: Field<'s>, header: &str) -> SomeResources {
        let Some(table) = self.table_of(field) else { return SomeResources::default() };
        let around = Surroundings { header, first: Some(field.key_span) };
        self.check_keys(table, Scope::Resources, &around);
        let get = |reader: &Self, name| reader.field(table, Scope::Resources, name);
        SomeResources {
            cpu_millis: get(self, "cpus").and_then(|field| self.cpus(field)),
            memory: get(self, "memory").and_then(|field| self.size(field, MEMORY)),
            pids: get(self, "pids").and_then(|field| self.whole_number(field, PIDS)),
            disk: get(self, "disk").and_then(|field| self.size(field, DISK)),
        }
    }

    pub(crate) fn checkout(&mut self, field: Field<'s>, header: &str) -> SomeCheckout {
        let Some(table) = self.table_of(field) else { return SomeCheckout::default() };
        let around = Surroundings { header, first: Some(field.key_span) };
        self.check_keys(table, Scope::Checkout, &around);
        let depth = self.field(table, Scope::Checkout, "depth").and_then(|field| self.depth(field));
        let tags = self.field(table, Scope::Checkout, "tags").and_then(|field| self.boolean(field));
        SomeCheckout { depth, tags }
    }

    fn depth(&mut self, field: Field<'s>) -> Option<Option<u32>> {
        if let Value::Text(_) = field.node.value {
            return self.word(field, &[("all", None)]);
        }
        if let Value::Integer(Some(0)) = field.node.value {
            self.report(field.node.span, Code::OutOfRange, |_| {
                let help = "for all of the history, write `depth = \"all\"`".to_owned();
                ("`depth` must be at least 1".to_owned(), Some(help))
            });
            return None;
        }
        let number = self.whole_number(field, (1, MAX_DEPTH))?;
        u32::try_from(number).ok().map(Some)
    }

    pub(crate) fn labels(&mut self, field: Field<'s>) -> Option<LabelExpr> {
        let text = self.text(field)?;
        match text.parse::<LabelExpr>() {
            Ok(labels) => Some(labels),
            Err(error) => {
                let rest = text.get(error.offset..).unwrap_or("");
                let word =
                    rest.find(|c: char| c.is_whitespace() || c == '(' || c == ')').unwrap_or(rest.len());
                let place = self.inside(field.node.span, error.offset, word);
                self.report(place, Code::BadLabels, |_| {
                    let help = "for example `os=linux && (arch=amd64 || arch=arm64) && !slow`".to_owned();
                    (format!("in this label expression: {}", error.message), Some(help))
                });
                None
            }
        }
    }

    pub(crate) fn image(&mut self, field: Field<'s>) -> Option<String> {
        if let Value::Table(_) = field.node.value {
            self.report(field.node.span, Code::UnsupportedKey, |_| {
                let message = "an image made from `packages` is not carried out by this version of Buildyard";
                let help = "name an image that holds the packages: `image = \"c-toolchain:12\"`".to_owned();
                (message.to_owned(), Some(help))
            });
            return None;
        }
        let text = self.text(field)?;
        if let Some((message, offset)) = fault_of_image(text) {
            let place = self.inside(field.node.span, offset, text.len() - offset);
            let place = if text.is_empty() { field.node.span } else { place };
            self.report(place, Code::BadImage, |_| {
                (message, Some("for example `debian:12` or `registry.example/team/tools:1.4`".to_owned()))
            });
            return None;
        }
        Some(text.to_owned())
    }

    /// A table of variables. `owner` is the scope around it, whose keys may have slipped in below its header.
    pub(crate) fn env(&mut self, field: Field<'s>, owner: Scope) -> BTreeMap<String, String> {
        let Some(table) = self.table_of(field) else { return BTreeMap::new() };
        if table.entries.len() > MAX_ENV_VARIABLES {
            let extra = &table.entries[MAX_ENV_VARIABLES];
            self.report(extra.key_span, Code::TooMany, |_| {
                (format!("`env` has more than {MAX_ENV_VARIABLES} variables"), None)
            });
        }
        let mut variables = BTreeMap::new();
        let mut bytes = 0;
        for entry in table.entries.iter().take(MAX_ENV_VARIABLES) {
            if let Some(value) = self.variable(entry, table, owner) {
                bytes += entry.key.len() + value.len();
                variables.insert(entry.key.clone(), value.to_owned());
            }
        }
        if bytes > MAX_ENV_BYTES {
            self.report(field.key_span, Code::OutOfRange, |_| {
                let message =
                    format!("`env` holds {bytes} bytes, at most {MAX_ENV_BYTES} are handed to a step");
                (message, Some("put large texts into files of the repository".to_owned()))
            });
        }
        variables
    }

    fn variable(&mut self, entry: &'s Entry, table: &'s Table, owner: Scope) -> Option<&'s str> {
        if let Some(message) = fault_of_variable(&entry.key) {
            self.report(entry.key_span, Code::BadVariable, |_| {
                (format!("{} cannot be a variable: {message}", quote(&entry.key)), None)
            });
            return None;
        }
        let Value::Text(text) = &entry.node.value else {
            self.wrong_variable(entry, table, owner);
            return None;
        };
        self.plain(text, entry.node.span)
    }

    fn wrong_variable(&mut self, entry: &Entry, table: &Table, owner: Scope) {
        if let Value::Bad = entry.node.value {
            return;
        }
        let name = quote(&entry.key);
        if table.origin == Origin::Header && reference::find(owner, &entry.key).is_some() {
            return self.report(entry.key_span, Code::KeyInWrongTable, |_| {
                let message = format!(
                    "{name} is a key of {}, but below the header of `env` every key is a variable",
                    owner.noun()
                );
                (message, Some("move it up, above the header of `env`".to_owned()))
            });
        }
        self.report(entry.node.span, Code::WrongType, |reader| {
            let message =
                format!("expected a string for the variable {name}, found {}", entry.node.value.describe());
            let is_plain =
                matches!(entry.node.value, Value::Integer(_) | Value::Float(_) | Value::Boolean(_));
            let written = shorten(reader.source.slice(entry.node.span));
            (
                message,
                is_plain.then(|| format!("variables are text: `{} = \"{written}\"`", shorten(&entry.key))),
            )
        });
    }
}

fn help_for_duration(text: &str) -> String {
    let plain = "write a number and a unit, such as `90s`, `30m`, `2h` or `7d`".to_owned();
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let unit = text[digits.len()..].trim();
    let meant = match unit.to_lowercase().as_str() {
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "" | "m" | "min" | "mins" | "minute" | "minutes" => "m",
        "h" | "hr" | "hrs" | "hour" | "hours" => "h",
        "d" | "day" | "days" => "d",
        _ => return plain,
    };
    if digits.is_empty() || digits.len() > 9 { plain } else { format!("did you mean `\"{digits}{meant}\"`?") }
}

fn help_for_size(text: &str) -> String {
    let plain = "write a whole number and a unit, such as `512MiB` or `2GiB`".to_owned();
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let unit = text[digits.len()..].trim();
    let meant = match unit.to_lowercase().as_str() {
        "k" | "kb" | "ki" | "kib" => "KiB",
        "m" | "mb" | "mi" | "mib" => "MiB",
        "g" | "gb" | "gi" | "gib" => "GiB",
        "t" | "tb" | "ti" | "tib" => "TiB",
        _ => return plain,
    };
    if digits.is_empty() || digits.len() > 9 { plain } else { format!("did you mean `\"{digits}{meant}\"`?") }
}
