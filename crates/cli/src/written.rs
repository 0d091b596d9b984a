//! The text of an answer as it is written, up to what ends it.

use ocelli_data::text::{TextStream, Tokenizer};

/// Text that grows token by token until one of its stops occurs in it.
pub(crate) struct Written<'a> {
    stream: Option<TextStream<'a>>,
    stops: &'a [String],
    text: String,
    /// Bytes of `text` that were handed out.
    shown: usize,
    is_over: bool,
}

impl<'a> Written<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, stops: &'a [String]) -> Self {
        let stream = Some(tokenizer.stream(true));
        Self { stream, stops, text: String::new(), shown: 0, is_over: false }
    }

    /// Adds a token. Gives what can be shown now: whole characters that no stop will take back.
    pub(crate) fn push(&mut self, id: u32) -> &str {
        let more = self.stream.as_mut().map(|s| s.push(id)).unwrap_or_default();
        self.add(&more);
        let end = if self.is_over { self.text.len() } else { self.text.len() - self.held_back() };
        self.show(end)
    }

    /// Whether a stop occurred.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Ends the text. Gives what was not shown yet.
    pub(crate) fn finish(&mut self) -> &str {
        let more = self.stream.take().map(TextStream::finish).unwrap_or_default();
        self.add(&more);
        self.show(self.text.len())
    }

    /// All of the text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn add(&mut self, more: &str) {
        if self.is_over || more.is_empty() {
            return;
        }
        self.text += more;
        if let Some(at) = self.stops.iter().filter_map(|stop| self.text.find(stop)).min() {
            self.text.truncate(at);
            self.is_over = true;
        }
    }

    /// Bytes at the end that may be the beginning of a stop.
    fn held_back(&self) -> usize {
        let begins = |stop: &String| {
            let lengths = stop.char_indices().map(|(at, _)| at).filter(|at| *at > 0);
            lengths.filter(|at| self.text.ends_with(&stop[..*at])).max().unwrap_or(0)
        };
        self.stops.iter().map(begins).max().unwrap_or(0)
    }

    fn show(&mut self, end: usize) -> &str {
        let from = self.shown.min(end);
        self.shown = self.shown.max(end);
        &self.text[from..end]
    }
}
