//! Text: tokenizers, prompt templates, class names.
