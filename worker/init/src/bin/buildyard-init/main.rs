//! PID 1 of an attempt.

fn main() {
    std::process::exit(buildyard_init::protocol::EXIT_USAGE);
}
