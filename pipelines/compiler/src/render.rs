//! Diagnostics as people read them.

use buildyard_types::job::Diagnostic;

/// Every frame, a blank line between them, and a line that sums up.
pub fn render(diagnostics: &[Diagnostic]) -> String {
    let mut text = String::new();
    for diagnostic in diagnostics {
        text.push_str(&format!("{diagnostic}\n\n"));
    }
    text.push_str(&summary(diagnostics));
    text
}

/// `2 mistakes in pipeline.toml`.
pub fn summary(diagnostics: &[Diagnostic]) -> String {
    let mut files: Vec<&str> = diagnostics.iter().map(|diagnostic| diagnostic.file.as_str()).collect();
    files.dedup();
    let mistakes = match diagnostics.len() {
        0 => "no mistakes".to_owned(),
        1 => "1 mistake".to_owned(),
        many => format!("{many} mistakes"),
    };
    match files.as_slice() {
        [] => mistakes,
        [file] => format!("{mistakes} in {file}"),
        several => format!("{mistakes} in {} files", several.len()),
    }
}
