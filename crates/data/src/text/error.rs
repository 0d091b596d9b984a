//! What can go wrong with vocabularies, texts and templates.

/// An error of the text module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file could not be opened, read or unpacked.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is larger than any vocabulary.
    #[error("{file} has more than {limit} bytes; check that it is a vocabulary")]
    FileTooLarge {
        /// The file.
        file: String,
        /// The largest size in bytes.
        limit: u64,
    },
    /// A file that should be text is not.
    #[error("{file} is not UTF-8 at byte {offset}; check that it is a vocabulary")]
    NotUtf8 {
        /// The file.
        file: String,
        /// Where the text breaks.
        offset: usize,
    },
    /// A file is not JSON, or not of the expected kind.
    #[error("{file} is not the JSON expected of a tokenizer: {source}")]
    Json {
        /// The file.
        file: String,
        /// The cause, with line and column.
        source: serde_json::Error,
    },
    /// A line of a merge file is not two symbols.
    #[error("{file} line {line}: expected two symbols with a space between, found {found:?}")]
    BadMerge {
        /// The file.
        file: String,
        /// The line, or the number of the merge in a `tokenizer.json`, from 1.
        line: usize,
        /// The line's start.
        found: String,
    },
    /// A line of a vocabulary of tiktoken is not a piece in base64 and its id.
    #[error("{file} line {line}: expected a piece in base64 and its id; fetch the file again")]
    BadPiece {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
    },
    /// A merge has a symbol that is not in the vocabulary.
    #[error(
        "{file} line {line} of the merges: symbol {symbol:?} is not in the vocabulary; take both \
         files from the same model"
    )]
    UnknownSymbol {
        /// The file.
        file: String,
        /// The line, or the number of the merge in a `tokenizer.json`, from 1.
        line: usize,
        /// The symbol.
        symbol: String,
    },
    /// A byte has no symbol in the vocabulary.
    #[error("{file} has no symbol {symbol:?}, which every byte-level vocabulary has")]
    NoByteSymbol {
        /// The file.
        file: String,
        /// The symbol.
        symbol: String,
    },
    /// A special token is not in the vocabulary.
    #[error("{file} has no token {token:?}; take the vocabulary from the folder of its model")]
    NoSuchToken {
        /// The file.
        file: String,
        /// The token.
        token: String,
    },
    /// An id is far beyond the number of symbols.
    #[error("{file}: id {id} is not below {limit}; ids must be numbered without gaps")]
    TokenIdTooLarge {
        /// The file.
        file: String,
        /// The id.
        id: usize,
        /// The bound that it breaks.
        limit: usize,
    },
    /// An id to decode is not in the vocabulary.
    #[error("id {id} is not below {vocab}, the size of the vocabulary; use the model's tokenizer")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// How many ids there are.
        vocab: usize,
    },
    /// A text has too many tokens.
    #[error(
        "the text has {tokens} tokens, expected at most {context_length}; shorten it or have it cut"
    )]
    TextTooLong {
        /// Its tokens, with the special ones around it.
        tokens: usize,
        /// The most there may be.
        context_length: usize,
    },
    /// A `SentencePiece` model is not the protocol buffer it should be.
    #[error("{file} is broken at byte {offset}: expected a SentencePiece model; fetch it again")]
    BrokenModel {
        /// The file.
        file: String,
        /// Where the first field that cannot be read starts.
        offset: usize,
    },
    /// A `SentencePiece` model is neither unigram nor BPE.
    #[error(
        "{file}: expected model type 1 (unigram) or 2 (BPE), found {number}; use a model of these"
    )]
    UnknownAlgorithm {
        /// The file.
        file: String,
        /// The type.
        number: u64,
    },
    /// The compiled normalisation of a model is cut off.
    #[error(
        "{file}: expected a compiled normalisation, found {bytes} bytes that are none; fetch it again"
    )]
    BrokenCharsmap {
        /// The file.
        file: String,
        /// Its size.
        bytes: usize,
    },
    /// A part of a tokenizer does what no rule here does.
    #[error("{file}: {part} {found:?} is not supported; use the files of a supported model")]
    UnsupportedPart {
        /// The file.
        file: String,
        /// What the part is for.
        part: &'static str,
        /// The part.
        found: String,
    },
    /// Symbols of a vocabulary end words with a mark, as those of CLIP.
    #[error("{file}: {mark:?} ends words, as in CLIP's vocabularies; read it as that of a CLIP")]
    EndsWords {
        /// The file.
        file: String,
        /// The mark.
        mark: String,
    },
    /// A list of a vocabulary has another length than its tokens.
    #[error("{list} has {found} entries, expected {expected}, one for each token; fetch it again")]
    ListLength {
        /// The list.
        list: &'static str,
        /// Its length.
        found: usize,
        /// How many tokens there are.
        expected: usize,
    },
    /// A folder has no tokenizer.
    #[error(
        "{path} has no tokenizer.json, tokenizer.model, spiece.model, vocab.json with merges.txt or \
         vocab.txt; add the tokenizer's files of its model"
    )]
    NoTokenizer {
        /// The folder.
        path: std::path::PathBuf,
    },
    /// A chat template is not Jinja, or does what cannot be done.
    #[error(
        "{file}: the chat template fails at line {line}: {source}; give another one with \
         --chat-template"
    )]
    ChatTemplate {
        /// The file.
        file: String,
        /// The line of the template, from 1; 0 if the cause has none.
        line: usize,
        /// The cause.
        source: minijinja::Error,
    },
    /// A chat template does not take a conversation.
    #[error("{file}: the chat template refuses the conversation: {reason}")]
    ConversationRefused {
        /// The file.
        file: String,
        /// What the template says.
        reason: String,
    },
    /// A tokenizer prints something else than it read.
    #[error(
        "token {token:?} is not what the text has at byte {at}, so which tokens are learned is not \
         known; use a tokenizer that keeps texts as they are, such as one of LLaMA"
    )]
    TokenElsewhere {
        /// The token.
        token: String,
        /// Where the text goes on.
        at: usize,
    },
    /// A template has no place for the label.
    #[error("template {template:?} has no {{}}; put {{}} where the label goes")]
    NoPlaceholder {
        /// The template.
        template: String,
    },
    /// A vocabulary to train has no room for all bytes.
    #[error("a vocabulary of {vocab_size} is too small; ask for {smallest} or more")]
    VocabularyTooSmall {
        /// The size asked for.
        vocab_size: usize,
        /// The smallest size.
        smallest: usize,
    },
}

/// A result of the text module.
pub type Result<T> = std::result::Result<T, TextError>;
