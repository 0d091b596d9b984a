//! Commands with what they print: the guide and the transcripts in `cmd/`, run from the root of the
//! repository as a reader would.

#[test]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
fn transcripts() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::set_current_dir(&root).unwrap();
    trycmd::TestCases::new()
        .case(root.join("crates/cli/tests/cmd/*.md"))
        .case(root.join("docs/cli.md"))
        .env("OCELLI_THREADS", "1")
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HUB_CACHE", "no-such-cache");
}
