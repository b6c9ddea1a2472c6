//! The `graven` command; everything is in the library's `cli` module.

fn main() -> std::process::ExitCode {
    graven::cli::main()
}
